"""The report's ranking beside the means over seeds."""

import dataclasses

import pytest
from scipy import stats

from pneumoscope.core.comparison import Comparison, RunGroup, SeedSpread
from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.comparison.paired_findings import make_paired_test
from pneumoscope.reproduction.published import COUNTS, PRINTED, published_table
from pneumoscope.reproduction.ranking import ranking_sentences

NAMES = ("alexnet-sgd", "alexnet-adam", "alexnet-adam-32")  # accuracies 0.798, 0.923 and 0.851 in the report


def make_comparison(accuracies, p_values):
    """Return a comparison of three seeds of each run; p-values of (sgd, adam), (sgd, adam-32), (adam, adam-32)."""
    groups = tuple(
        RunGroup(
            name, tuple(f"{name}/seed-{seed}" for seed in range(3)), (0, 1, 2),
            {"accuracy": SeedSpread(Interval(value, value - 0.02, value + 0.02, "m", 624), 0.01, value - 0.01, value + 0.01)},
        )
        for name, value in zip(NAMES, accuracies, strict=True)
    )  # fmt: skip
    pairs = []
    for (i, j), p in zip(((0, 1), (0, 2), (1, 2)), p_values, strict=True):
        value = accuracies[i] - accuracies[j]
        half = abs(value) / 2 if p < 0.05 else abs(value) + 0.01
        interval = Interval(value, value - half, value + half, "m", 624)
        pairs.append(make_paired_test(NAMES[i], NAMES[j], "accuracy", "obuchowski-rockette", interval, p, p))
    return Comparison(
        images={"n": 624, "counts": COUNTS}, operating_point="half", runs=(), pairs=tuple(pairs), sentences=(),
        command="", created="", version="", groups=groups,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("accuracies", "p_values", "counts", "verdict"),
    [
        ((0.80, 0.92, 0.85), (0.001, 0.01, 0.02), (3, 0, 0, 0), "survives the seeds: every pair is confirmed"),
        ((0.80, 0.86, 0.85), (0.001, 0.01, 0.7), (2, 1, 0, 0), "is not confirmed: 1 pair cannot be distinguished"),
        ((0.80, 0.84, 0.85), (0.2, 0.01, 0.7), (1, 1, 1, 0), "is not confirmed: 2 pairs cannot be distinguished"),
        ((0.80, 0.84, 0.90), (0.2, 0.01, 0.003), (1, 1, 0, 1), "does not survive the seeds"),
    ],
)
def test_pairs_are_counted_by_order_and_significance(accuracies, p_values, counts, verdict):
    ranking, pairs, last = ranking_sentences(make_comparison(accuracies, p_values))
    assert ranking.startswith("The report ranks alexnet-adam (0.923) > alexnet-adam-32 (0.851) > alexnet-sgd (0.798)")
    tau = stats.kendalltau([PRINTED[name][0] for name in NAMES], accuracies).statistic
    assert f"Kendall's tau {tau:+.2f}" in ranking
    numbers = [int(word) for word in pairs.replace(",", "").split() if word.isdigit()]
    assert numbers == [3, *counts]
    assert verdict in last


def test_single_seeds_have_no_ranking():
    comparison = make_comparison((0.8, 0.9, 0.85), (0.001, 0.01, 0.02))
    assert ranking_sentences(dataclasses.replace(comparison, groups=())) == ()


def test_published_row_is_beside_the_mean_of_the_seeds():
    rows = {row.name: row for row in published_table(make_comparison((0.80, 0.90, 0.9), (0.2, 0.2, 0.2))).rows}
    assert rows["alexnet-adam"].difference is None
    assert rows["alexnet-adam"].sentence == (
        "alexnet-adam: mean accuracy 0.900 [0.880, 0.920] over 3 seeds (0, 1, 2), range 0.890 to 0.910, at the operating point"
        " half; 0.923 [0.899, 0.941] in the report, above all seeds."
    )
    assert rows["alexnet-sgd"].sentence.endswith("in the report, within the range of the seeds.")
    assert rows["alexnet-adam-32"].sentence.endswith("in the report, below all seeds.")
    assert rows["vgg19-adam"].sentence == "vgg19-adam: no run with this name."
