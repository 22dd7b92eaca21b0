"""Format the result of an acceptance test as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pneumoscope.core.messages import counted, of_patients_text, operating_point_label
from pneumoscope.core.result_forms import with_minus_signs
from pneumoscope.evaluation.acceptance.accept import Acceptance
from pneumoscope.evaluation.acceptance.metrics import CalibrationSummary
from pneumoscope.statistics.noninferiority import NonInferiority, Verdict

__all__ = ["acceptance_markdown"]

_VERDICTS: Mapping[Verdict, str] = {
    "non_inferior": "non-inferior",
    "inferior": "**inferior**",
    "inconclusive": "inconclusive",
}
_ACCEPTED = "accepted by the input checks"
_PARTS = {
    "calibration": "calibration",
    "prevalence": "prevalence that probabilities are stated for",
    "input_classifier": "limit of the input classifier",
    "age_classifier": "limit of the age classifier",
    "ood_detector": "limit of the out-of-distribution detector",
}


def acceptance_markdown(result: Acceptance) -> str:
    """Return the report: verdict, tests, calibration, rejections, subgroups and profile."""
    lines = [
        f"# Acceptance test of {result.bundle} at {result.site}",
        "",
        *_verdict_lines(result),
        "",
        *_operating_point_lines(result),
        "",
        *_calibration_lines(result),
        "",
        *_rejection_lines(result),
        "",
        *_subgroup_lines(result),
        *_profile_lines(result),
        "",
        *_notes(result),
        f"`{result.command}`",
        "",
        result.notice,
        "",
    ]
    return "\n".join(lines)


def _verdict_lines(result: Acceptance) -> list[str]:
    """Return the lines on images and model, verdict and tests."""
    point = result.operating_points[result.operating_point]
    tests = [(metric, test) for metric, test in point.tests.items()]
    if result.accepted_test:
        tests.append((_ACCEPTED, result.accepted_test))
    patients = of_patients_text(result.patients, result.unknown_patients, result.n)
    return [
        f"{counted(result.n, 'image')} {patients}: {result.counts['PNEUMONIA']} with and"
        f" {result.counts['NORMAL']} without pneumonia. Model: {result.bundle} ({result.network}), network"
        f" {result.onnx_sha256[:12]}, card {result.card_sha256[:12]}. Images: {result.images_sha256[:12]}. Intervals are 95%,"
        f" over patients; seed {result.seed}.",
        "",
        f"**Verdict at {operating_point_label(result.operating_point)}: {_sentence(result, tests)}**",
        "",
        "| | on the card | at the site | site minus card | verdict | power |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {metric} | {point.reference[metric]} | {point.observed[metric]} | | not tested | |"
            for metric in point.reference
            if metric not in point.tests
        ),
        *(_test_row(result, metric, test) for metric, test in tests),
        "",
        f"Margin: a decrease of {result.margin:g}. Non-inferior: the interval of the difference lies above"
        f" {with_minus_signs(f'{-result.margin:g}')};"
        " the one-sided type I error rate is 2.5%. Power: probability of that with as many images if nothing changed."
        f" Sensitivity and specificity are of accepted images. {_input_checks(result)} The card's"
        " sensitivity and specificity are of the images that chose its thresholds, and so"
        " somewhat optimistic.",
        *_sample_sizes(result),
    ]


def _input_checks(result: Acceptance) -> str:
    if result.accepted_test is None:
        return "The model has no input checks to test."
    return "The input checks are tested on images that neither pixels nor header nor age exclude."


def _test_row(result: Acceptance, metric: str, test: NonInferiority) -> str:
    reference, observed = _pair(result, metric)
    return f"| {metric} | {reference} | {observed} | {test.difference:+.3f} | {_VERDICTS[test.verdict]} | {test.power:.0%} |"


def _operating_point_lines(result: Acceptance) -> list[str]:
    """Return the lines on operating points with and without the profile, AUROC and prevalence."""
    lines = [
        "## Operating points",
        "",
        "Accepted images only. The last two columns are with the site profile, cross-fitted: each image is evaluated with what"
        " was fitted on other patients. Parts were replaced or kept by these figures, which makes them slightly optimistic.",
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
    stated = f" Stated for the site: {result.stated_prevalence:g}." if result.stated_prevalence is not None else ""
    return [
        *lines,
        "",
        f"AUROC of accepted images: {result.auroc}. Prevalence of pneumonia in the images: {result.prevalence}.{stated}",
    ]


def _calibration_lines(result: Acceptance) -> list[str]:
    return [
        "## Calibration",
        "",
        "Of accepted images, with the probabilities stated for the prevalence of these images.",
        "",
        "| probabilities | slope (1 is perfect) | intercept (0 is perfect) | Brier score | calibration error |",
        "| --- | --- | --- | --- | --- |",
        _calibration_row("of the model", result.calibration),
        _calibration_row("with the site profile, cross-fitted", result.calibration_with_profile),
    ]


def _rejection_lines(result: Acceptance) -> list[str]:
    return [
        "## Rejections",
        "",
        f"Rejected: {result.rejected.share}; with the site profile, cross-fitted: {result.rejected_with_profile}.",
        "",
        "| reason | images |",
        "| --- | --- |",
        *(f"| `{code}` | {count} |" for code, count in result.rejected.reasons.items()),
    ]


def _profile_lines(result: Acceptance) -> list[str]:
    return [
        "## Site profile",
        "",
        f"Changed: {_list(_changed_part(result, name) for name in result.changed)}.",
        "",
        *(["Kept as on the card:", ""] if result.not_changed else []),
        *(f"- {_part(name)}: {reason}." for name, reason in result.not_changed.items()),
    ]


def _sentence(result: Acceptance, tests: list[tuple[str, NonInferiority]]) -> str:
    if result.verdict == "non_inferior":
        return "non-inferior to the card."
    inferior = [metric for metric, test in tests if test.verdict == "inferior"]
    if inferior:
        return f"inferior to the card ({_list(inferior)})."
    open_tests = [metric for metric, test in tests if test.verdict == "inconclusive"]
    point = result.operating_points[result.operating_point]
    open_tests += [metric for metric in point.reference if metric not in point.tests]
    return f"inconclusive ({_list(open_tests) if open_tests else 'no image reached the input checks'})."


def _pair(result: Acceptance, metric: str) -> tuple[str, str]:
    """Return a metric on the card and at the site."""
    point = result.operating_points[result.operating_point]
    if metric in point.reference:
        return str(point.reference[metric]), str(point.observed[metric])
    return str(result.accepted_reference), str(result.accepted)


def _sample_sizes(result: Acceptance) -> list[str]:
    needed = result.operating_points[result.operating_point].needed
    sensitivity, specificity = (needed[metric] for metric in ("sensitivity", "specificity"))

    def text(count: int | None, label: str) -> str:
        return (
            f"{count:,} accepted images {label} pneumonia" if count else f"more images {label} pneumonia than feasible"
        )

    advice = (
        ""
        if sensitivity and specificity
        else " The card's own interval is too wide for this margin: choose a larger one (pneumoscope sample-size)."
    )
    return [
        "",
        f"A power of {result.target_power:.0%} for each of the two needs {text(sensitivity, 'with')} and"
        f" {text(specificity, 'without')}, one per patient.{advice}",
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


def _changed_part(result: Acceptance, name: str) -> str:
    if name not in result.limits:
        return _part(name)
    old, new = result.limits[name]
    return f"{_part(name)} (from {old:.3g} to {new:.3g}, **more unsuitable images are accepted**)"


def _notes(result: Acceptance) -> list[str]:
    if not result.notes:
        return []
    return ["## Notes", "", *(f"- {note}." for note in result.notes), ""]


def _part(name: str) -> str:
    return _PARTS.get(name) or f"threshold of {operating_point_label(name)}"


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "nothing"
