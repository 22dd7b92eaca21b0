"""Write the result of an acceptance test as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pneumoscope.core.messages import counted, operating_point_label
from pneumoscope.core.results import Interval
from pneumoscope.evaluation.acceptance import Acceptance, CalibrationSummary
from pneumoscope.statistics.noninferiority import NonInferiority, Verdict

__all__ = ["acceptance_markdown"]

_VERDICTS: Mapping[Verdict, str] = {
    "non_inferior": "not inferior",
    "inferior": "**inferior**",
    "inconclusive": "inconclusive",
}
_PARTS = {
    "calibration": "calibration",
    "prevalence": "prevalence that probabilities are stated for",
    "input_classifier": "limit of the input classifier",
    "age_classifier": "limit of the age classifier",
    "ood_detector": "limit of the out-of-distribution detector",
}


def acceptance_markdown(result: Acceptance) -> str:
    """Return the report: verdict, tests, calibration, rejections, subgroups and profile."""
    point = result.operating_points[result.operating_point]
    tests = [(metric, test) for metric, test in point.tests.items()]
    if result.accepted_test:
        tests.append(("fraction of accepted images", result.accepted_test))
    lines = [
        f"# Acceptance test of {result.bundle} at {result.site}",
        "",
        f"{counted(result.n, 'image')} of {counted(result.patients, 'patient')}: {result.counts['PNEUMONIA']} with and"
        f" {result.counts['NORMAL']} without pneumonia. Model: {result.bundle} ({result.network}), network"
        f" {result.onnx_sha256[:12]}, card {result.card_sha256[:12]}. Images: {result.images_sha256[:12]}. Intervals are 95%,"
        f" over patients; seed {result.seed}.",
        "",
        f"**Verdict at {operating_point_label(result.operating_point)}: {_sentence(result, tests)}**",
        "",
        "| | on the card | at the site | difference | verdict | power |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for metric, test in tests:
        reference, observed = _pair(result, metric)
        lines.append(
            f"| {metric} | {reference} | {observed} | {_signed(test.difference)} | {_VERDICTS[test.verdict]} | {test.power:.0%} |"
        )
    lines += [
        "",
        f"Margin: a decrease of {result.margin:g}. Not inferior: the interval of the difference lies above the margin, with a"
        " one-sided error of 2.5%. Power: probability of that with as many images if nothing changed.",
        *_sample_sizes(result),
        "",
        "## Operating points",
        "",
        "Accepted images only. The last two columns are with the site profile, cross-fitted: each image is evaluated with what"
        " was fitted on other patients.",
        "",
        "| operating point | sensitivity | specificity | threshold (score) | with profile: sensitivity | specificity |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in result.operating_points.items():
        threshold = f"{each.threshold:.3f}"
        if each.profile_threshold is not None:
            threshold += f", profile {each.profile_threshold:.3f}"
        lines.append(
            f"| {operating_point_label(name)} | {each.observed['sensitivity']} | {each.observed['specificity']} | {threshold} |"
            f" {each.with_profile['sensitivity']} | {each.with_profile['specificity']} |"
        )
    lines += [
        "",
        f"AUROC of accepted images: {result.auroc}. Prevalence of pneumonia: {result.prevalence}.",
        "",
        "## Calibration",
        "",
        "| probabilities | slope (1 is perfect) | intercept (0 is perfect) | Brier score | calibration error |",
        "| --- | --- | --- | --- | --- |",
        _calibration_row("of the model, for the prevalence of the site", result.calibration),
        _calibration_row("with the site profile, cross-fitted", result.calibration_with_profile),
        "",
        "## Rejections",
        "",
        f"Rejected: {result.rejected.share}; with the site profile, cross-fitted: {result.rejected_with_profile}.",
        "",
        "| reason | images |",
        "| --- | --- |",
        *(f"| `{code}` | {count} |" for code, count in result.rejected.reasons.items()),
        "",
        *_subgroup_lines(result),
        "## Site profile",
        "",
        f"Changed: {_list(_part(name) for name in result.changed)}.",
        "",
        *(f"- {_part(name)}: {reason}." for name, reason in result.not_changed.items()),
        "",
        f"`{result.command}`",
        "",
        result.notice,
        "",
    ]
    return "\n".join(lines)


def _sentence(result: Acceptance, tests: list[tuple[str, NonInferiority]]) -> str:
    if result.verdict == "non_inferior":
        return "not inferior to the card."
    inferior = [metric for metric, test in tests if test.verdict == "inferior"]
    if inferior:
        return f"inferior to the card ({_list(inferior)})."
    open_tests = [metric for metric, test in tests if test.verdict == "inconclusive"]
    return f"inconclusive ({_list(open_tests) if open_tests else 'too few accepted images'})."


def _pair(result: Acceptance, metric: str) -> tuple[str, str]:
    """Return the figures on the card and at the site."""
    point = result.operating_points[result.operating_point]
    if metric in point.reference:
        return str(point.reference[metric]), str(point.observed[metric])
    return str(result.accepted_reference), str(result.accepted)


def _sample_sizes(result: Acceptance) -> list[str]:
    needed = result.operating_points[result.operating_point].needed
    sensitivity, specificity = (needed[metric] for metric in ("sensitivity", "specificity"))

    def text(count: int | None, label: str) -> str:
        return f"{count:,} accepted images {label} pneumonia" if count else f"no feasible number {label} pneumonia"

    return [
        "",
        f"A power of {result.target_power:.0%} needs {text(sensitivity, 'with')} and {text(specificity, 'without')}, one per"
        " patient.",
    ]


def _calibration_row(name: str, summary: CalibrationSummary) -> str:
    return (
        f"| {name} | {summary.slope} | {summary.intercept} | {summary.brier} | {summary.expected_calibration_error} |"
    )


def _subgroup_lines(result: Acceptance) -> list[str]:
    if not result.subgroups:
        return ["## Subgroups", "", "The files have no header that states age, sex, view or manufacturer.", ""]
    return [
        "## Subgroups",
        "",
        f"At {operating_point_label(result.operating_point)}. Small subgroups vary by chance; nothing is tested here.",
        "",
        "| | | images | with pneumonia | rejected | sensitivity | specificity | AUROC |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {each.field} | {each.value.replace('|', ' ')} | {each.n} | {each.n_pneumonia} | {each.rejected} |"
            f" {each.sensitivity} | {each.specificity} | {each.auroc} |"
            for each in result.subgroups
        ),
        "",
    ]


def _part(name: str) -> str:
    return _PARTS.get(name) or f"threshold of {operating_point_label(name)}"


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "nothing"


def _signed(interval: Interval) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return str(interval)
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
