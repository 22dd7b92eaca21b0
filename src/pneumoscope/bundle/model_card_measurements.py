"""Model card sections for measurements: performance, subgroups, robustness, heatmaps, shortcuts and failures.

Sections without a measurement name the missing command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pneumoscope.bundle.evidence import EVIDENCE, Json, images_text, interval_text, unusable_images
from pneumoscope.core.result_forms import decimals_to_distinguish, format_decimals

__all__ = [
    "data_shortcuts",
    "failure_section",
    "ledger_text",
    "markdown_table",
    "measurement_sections",
    "metric_rows",
    "performance_sections",
    "reliability_table",
    "subgroup_table",
]

_ETIOLOGIES = {
    "normal": "normal images",
    "bacteria": "images of bacterial pneumonia",
    "virus": "images of viral pneumonia",
}
_MAX_FAILURES = 8


def performance_sections(evaluation: Json | None, robustness: Json | None) -> list[str]:
    """Return the sections on performance, subgroups and known failures as Markdown; see `evidence.read_evidence`."""
    return [*_performance(evaluation), *_subgroups(evaluation), *_failures(evaluation, robustness)]


def measurement_sections(
    *,
    robustness: Json | None,
    shortcuts: Json | None,
    saliency_check: Json | None,
    phantom_saliency_check: Json | None,
    audit: Json | None,
) -> list[str]:
    """Return the sections on robustness, heatmaps and shortcuts as Markdown paragraphs; see `evidence.read_evidence`."""
    return [
        *_robustness(robustness),
        *_heatmaps(saliency_check),
        *_localization(phantom_saliency_check),
        *_network_shortcuts(shortcuts),
        *data_shortcuts(audit),
    ]


def _performance(evaluation: Json | None) -> list[str]:
    if not evaluation:
        return ["## Performance", f"Not measured yet: `{EVIDENCE['evaluation']}`."]
    rows = [
        *metric_rows(evaluation["metrics"]),
        *(
            (f"AUROC, {_ETIOLOGIES.get(name, name)}", interval_text(value))
            for name, value in evaluation["auroc_by_etiology"].items()
        ),
    ]
    points = [
        (name, point["rule"], *(interval_text(point["metrics"][metric]) for metric in ("sensitivity", "specificity")))
        for name, point in evaluation["operating_points"].items()
    ]
    return [
        "## Performance",
        f"On {images_text(evaluation)}.{ledger_text(evaluation)}",
        markdown_table(("", "value [95% interval]"), rows),
        markdown_table(("operating point", "threshold", "sensitivity", "specificity"), points),
    ]


def metric_rows(metrics: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Return a table row with the name and interval of each metric."""
    return [(name.replace("_", " "), interval_text(value)) for name, value in metrics.items()]


def ledger_text(evaluation: Json) -> str:
    """Return a sentence, with a leading space, that gives the evaluation's number in the test ledger, or "" if it has none."""
    number = evaluation.get("test_evaluation")
    return f" This is evaluation number {number} on these test images." if number else ""


def reliability_table(bins: Sequence[Json], event: str) -> str:
    """Return a Markdown table of the observed rate of an event, such as pneumonia, by probability bin."""
    decimals = decimals_to_distinguish((each["low"], each["high"]) for each in bins)
    rows = [
        (
            f"{format_decimals(each['low'], decimals)} to {format_decimals(each['high'], decimals)}",
            format_decimals(each["mean_probability"], decimals),
            interval_text(each["observed_rate"]),
        )
        for each in bins
    ]
    return markdown_table(("probability", "mean", f"observed rate of {event} [95% interval]"), rows)


def _subgroups(evaluation: Json | None) -> list[str]:
    if not evaluation:
        return []
    rows = [
        (name, _ETIOLOGIES.get(etiology, etiology), interval_text(correct))
        for name, point in evaluation["operating_points"].items()
        for etiology, correct in point["by_etiology"].items()
    ]
    table = [markdown_table(("operating point", "images", "classified correctly [95% interval]"), rows)] if rows else []
    groups = subgroup_table(evaluation)
    if not groups:
        groups = [
            "Evaluations have no subgroups by age or sex: image files such as JPEG state neither. `pneumoscope accept` lists"
            " subgroups by age, sex, view and manufacturer for DICOM files."
        ]
    return ["## Subgroups", *groups, *table]


def subgroup_table(evaluation: Json) -> list[str]:
    """Return the subgroups by manifest column as a table and their tests as a list, or an empty list without subgroups."""
    groups = evaluation.get("subgroups", ())
    if not groups:
        return []
    metrics = list(groups[0]["metrics"])
    rows = [
        (
            f"{each['column']}: {each['value']}",
            str(each["n"]),
            *(interval_text(each["metrics"][name]) for name in metrics),
        )
        for each in groups
    ]
    point = groups[0]["operating_point"]
    return [
        *([f"At the operating point `{point}`:"] if point else []),
        markdown_table(("subgroup", "images", *(name.replace("_", " ") for name in metrics)), rows),
        "\n".join(f"- {test['sentence']}" for test in evaluation["interactions"]),
    ]


def _heatmaps(check: Json | None) -> list[str]:
    if not check:
        return ["## Heatmaps", f"Not measured yet: `{EVIDENCE['saliency_check']}`."]
    rows = [
        (name, *(interval_text(check[name][column]) for column in ("heatmap", "random", "improvement")))
        for name in ("deletion", "insertion")
    ]
    randomized = [
        (row["name"], interval_text(row["correlation"]), interval_text(row["magnitude_correlation"]))
        for row in check["randomization"]
    ]
    shape = " x ".join(str(side) for side in check["heatmap_shape"])
    return [
        "## Heatmaps",
        f"{shape} positions, on {check['n']} {check['split']} images. Area under the curve of the predicted class's score when"
        " pixels are removed (deletion, lower is better) or added (insertion, higher is better) in the order of the heatmap, and"
        " of random heatmaps with the same power spectrum."
        + (
            ""
            if check.get("localization")
            else " No masks of the disease were given, so localization was not measured."
        ),
        markdown_table(("curve", "heatmap", "random heatmap", "improvement"), rows),
        "Rank correlation with the heatmaps after layers were randomized; near 0 is expected. Compare correlations of"
        " magnitudes with the correlation for another image, in the last row:",
        markdown_table(("randomized", "correlation", "correlation of magnitudes"), randomized),
    ]


def _localization(check: Json | None) -> list[str]:
    if not check:
        return ["### Localization on phantoms", f"Not measured yet: `{EVIDENCE['phantom_saliency_check']}`."]
    found = check["localization"]
    rows = [
        ("largest contribution inside the opacity", interval_text(found["peak_inside"])),
        ("positive contributions inside the opacity", interval_text(found["energy_inside"])),
        ("expected by chance (area of the opacity)", interval_text(found["area"])),
    ]
    shape = " x ".join(str(side) for side in check["heatmap_shape"])
    return [
        "### Localization on phantoms",
        f"The position of the opacity in a phantom is known. A network with the same architecture was trained on phantoms alone;"
        f" its heatmaps have {shape} positions. On {found['n']} phantoms of the {check['split']} split:",
        markdown_table(("on phantoms", "value [95% interval]"), rows),
        f"`{check['command']}`",
    ]


def _robustness(robustness: Json | None) -> list[str]:
    if not robustness:
        return ["## Robustness", f"Not measured yet: `{EVIDENCE['robustness']}`."]
    rows = []
    sizes = [robustness["sizes"]] if robustness["sizes"] else []
    for row in [*sizes, *robustness["formats"], *robustness["changes"]]:
        largest = "none" if row["largest"] is None else f"{row['largest']:.3f}"
        rows.append((row["name"], interval_text(row["changed"]), largest))
    return [
        "## Robustness",
        f"On {robustness['n']} {robustness['split']} images"
        + ("; the full-size images are a separate set." if robustness["sizes"] else "."),
        markdown_table(("variant of the same image", "changed decisions", "largest change of probability"), rows),
    ]


def _network_shortcuts(shortcuts: Json | None) -> list[str]:
    if not shortcuts:
        return ["## Shortcuts of the network", f"Not measured yet: `{EVIDENCE['shortcuts']}`."]
    rows = [("whole image", interval_text(shortcuts["whole"]))]
    rows += [(row["name"], interval_text(row["auroc"])) for row in shortcuts["controls"]]
    return [
        "## Shortcuts of the network",
        f"AUROC of the network on {shortcuts['n']} {shortcuts['split']} images, split by {shortcuts['split_by']}, whole"
        " and changed. With the center blanked, 0.5 is chance; above it, the network can use the border, markers or the scanner.",
        markdown_table(("the network sees", "AUROC [95% interval]"), rows),
    ]


def data_shortcuts(audit: Json | None) -> list[str]:
    """Return the section on shortcuts in the data."""
    if not audit:
        return ["## Shortcuts in the data", f"Not measured yet: `{EVIDENCE['audit']}`."]
    rows = [(name.replace("_", " "), interval_text(value)) for name, value in audit["shortcuts"].items()]
    return [
        "## Shortcuts in the data",
        "Cross-validated AUROC of simple models that see no lung; 0.5 is chance. A network trained on the data may have learned"
        " the same shortcuts.",
        markdown_table(("control", "AUROC [95% interval]"), rows),
    ]


def _failures(evaluation: Json | None, robustness: Json | None) -> list[str]:
    """Return the section with the highest error rates of all measurements."""
    failures: list[tuple[float, str]] = []
    points = (evaluation or {}).get("operating_points", {})
    # Ties are ordered with the default operating point first.
    for name, point in sorted(points.items(), key=lambda item: item[0] != "balanced"):
        for etiology, correct in point["by_etiology"].items():
            if correct["value"] is not None:
                rate = 1 - correct["value"]
                text = f"{rate:.1%} of the {correct['n']} {_ETIOLOGIES[etiology]} are misclassified."
                failures.append((rate, f"At the operating point {name}, {text}"))
    for row in (robustness or {}).get("changes", []):
        rate = row["changed"]["value"]
        failures.append((rate, f"{rate:.1%} of decisions change if the image is altered: {row['name']}."))
    for row in unusable_images(robustness) if robustness else []:
        rate = 1 - row["rejected"]["value"]
        text = f"{rate:.1%} of {row['rejected']['n']} images that should be rejected ({row['name']}) are not rejected."
        failures.append((rate, text))
    return failure_section(failures)


def failure_section(failures: Iterable[tuple[float, str]]) -> list[str]:
    """Return the section with the highest error rates in descending order, or an empty list if all rates are 0.

    Args:
        failures: Rate and sentence of each kind of error.
    """
    found = sorted(((rate, text) for rate, text in failures if rate > 0), key=lambda failure: -failure[0])
    if not found:
        return []
    lines = [f"- {text}" for _, text in found[:_MAX_FAILURES]]
    if more := len(found) - len(lines):
        lines.append(f"- {more} more, of at most {found[_MAX_FAILURES][0]:.1%}: see the tables.")
    return ["## Known failures", "The highest error rates of all measurements of this card:", "\n".join(lines)]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
