"""Check whether the report's ranking of its networks holds for other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy import stats

from pneumoscope.core.comparison import Comparison, PairedTest
from pneumoscope.core.messages import counted
from pneumoscope.core.result_forms import with_minus_signs
from pneumoscope.reproduction.published import PRINTED

__all__ = ["ranking_sentences"]


def ranking_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return sentences that compare the report's ranking by accuracy with the ranking of means over seeds.

    A pair is confirmed if its test, which accounts for seeds and patients and is Holm-corrected, is significant in the
    order of the report; see `evaluation.comparison.run_groups`. Empty without several seeds.

    Args:
        comparison: Comparison of the report's runs with several seeds.
    """
    means = {
        group.name: group.metrics["accuracy"].mean.value
        for group in comparison.groups
        if group.name in PRINTED and "accuracy" in group.metrics
    }
    printed = {name: PRINTED[name][0] for name in means}
    pairs = [pair for pair in comparison.pairs if pair.metric == "accuracy" and {pair.a, pair.b} <= {*means}]
    if not pairs:
        return ()
    found = [_finding(pair, printed) for pair in pairs]
    counts = {kind: found.count(kind) for kind in ("confirmed", "same", "reverse", "contradicted")}
    order = _order(printed)
    sentences = [
        f"The report ranks {order} by accuracy; the means over seeds rank {_order({k: v or 0.0 for k, v in means.items()})}.",
        f"Of {counted(len(pairs), 'pair')}, {counts['confirmed']} have the order of the report with a significant difference,"
        f" {counts['same']} have it without one, {counts['reverse']} have the reverse order without one, and"
        f" {counts['contradicted']} have the reverse order with a significant difference.",
        _verdict(counts, len(pairs)),
    ]
    if len(means) > 2:
        tau = stats.kendalltau([printed[name] for name in means], [means[name] or 0.0 for name in means]).statistic
        sentences[0] = f"{sentences[0][:-1]} (Kendall's tau {with_minus_signs(f'{tau:+.2f}')})."
    return tuple(sentences)


def _finding(pair: PairedTest, printed: Mapping[str, float]) -> str:
    report = printed[pair.a] - printed[pair.b]
    same = report * (pair.difference.value or 0.0) > 0
    if pair.verdict in ("a", "b"):
        return "confirmed" if same else "contradicted"
    return "same" if same else "reverse"


def _verdict(counts: Mapping[str, int], total: int) -> str:
    if counts["confirmed"] == total:
        return "The report's ranking survives the seeds: every pair is confirmed."
    if counts["contradicted"]:
        return "The report's ranking does not survive the seeds: a significant difference contradicts it."
    return (
        f"The report's ranking is not confirmed: {counted(total - counts['confirmed'], 'pair')} cannot be distinguished with"
        " these seeds and images."
    )


def _order(values: Mapping[str, float]) -> str:
    ranked: Sequence[str] = sorted(values, key=lambda name: -values[name])
    return " > ".join(f"{name} ({values[name]:.3f})" for name in ranked)
