"""Render the model card as a self-contained HTML file: no scripts or requests; light, dark and print styles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from pneumoscope.bundle.bundle_folder import read_any_bundle
from pneumoscope.bundle.card import Card, Proportion
from pneumoscope.bundle.evidence import Json, read_evidence
from pneumoscope.bundle.model_card import expected_structure, model_card
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import ReliabilityBin
from pneumoscope.reporting.figures import estimates_figure, reliability_figure
from pneumoscope.reporting.style import drawing, run_style
from pneumoscope.reporting.svg import inline_svg
from pneumoscope.reporting.templating import environment, theme

__all__ = ["model_card_page"]

# Rendered header of a table without headings.
_EMPTY_HEAD = "<thead>\n<tr>\n<th></th>\n<th></th>\n</tr>\n</thead>\n"
# Headings of the sections with reliability diagrams: binary, multiclass.
_RELIABILITY = ("Probability and uncertainty", "Probabilities and prediction sets")
# Text alternatives and figures, by section heading.
_Figures = dict[str, list[tuple[str, Figure]]]


def model_card_page(folder: Path, evaluation: Path | None = None) -> str:
    """Return the model card of a bundle as an HTML page.

    The figures are sensitivity and specificity at each operating point, the reliability diagram (one per class for
    multiclass models), the fraction of images outside the population that pass all checks, and the AUROC of each
    shortcut control.

    Args:
        folder: Folder of the bundle, with its evidence.
        evaluation: See `evidence.read_evidence`.

    Raises:
        BundleError: See `model_card`.
    """
    title, *sections = re.split(r"^## ", model_card(folder, evaluation), flags=re.MULTILINE)
    card, _ = read_any_bundle(folder)
    evidence = read_evidence(folder, card, evaluation)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    with drawing(), expected_structure(folder):
        drawn = {
            heading: [
                inline_svg(figure, key=f"{_anchor(heading)}-{number}", label=label)
                for number, (label, figure) in enumerate(figures)
            ]
            for heading, figures in _figures(card, evidence).items()
        }
    parts = []
    for section in sections:
        heading, _, text = section.partition("\n")
        html = (
            markdown.render(text)
            .replace(_EMPTY_HEAD, "")
            .replace(
                "<table>", f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(heading)}"><table>'
            )
            .replace("</table>", "</table></div>")
        )
        figures = [Markup(svg) for svg in drawn.get(heading, ())]  # noqa: S704 - written by `inline_svg`
        # The renderer escapes HTML in the card.
        parts.append((heading, _anchor(heading), Markup(html), figures, heading in _RELIABILITY))  # noqa: S704
    name, _, lead = title.partition("\n")
    return (
        environment()
        .get_template("model_card.html")
        .render(
            title=name.removeprefix("# "),
            notice=lead.strip(),
            sections=parts,
            version=card.version,
            sha256=card.onnx_sha256,
            theme=theme(),
        )
    )


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _figures(card: Card | MulticlassCard, evidence: Mapping[str, Json | None]) -> _Figures:
    """Return the figures of a card."""
    evaluation, shortcuts = evidence["evaluation"], evidence["shortcuts"]
    figures: _Figures = {}
    if isinstance(card, Card):
        figures["Operating points"] = [_operating_points(card, evaluation)]
    if evaluation:
        figures[_RELIABILITY[isinstance(card, MulticlassCard)]] = _reliability(card, evaluation)
    if card.rejection_limits:
        rows = [
            (source, _interval(group.passed))
            for source, group in card.rejection_limits.outliers.items()
            if group.passed
        ]
        if rows:
            title = "Images outside the population that pass all checks"
            figures["Rejected images"] = [_estimates(title, rows, "fraction that would get a prediction")]
    if shortcuts:
        rows = [("whole image", _measured(shortcuts["whole"]))]
        rows += [(control["name"], _measured(control["auroc"])) for control in shortcuts["controls"]]
        figures["Shortcuts of the network"] = [
            _estimates("AUROC of each control", rows, "AUROC (0.5 is chance)", reference=0.5)
        ]
    return figures


def _operating_points(card: Card, evaluation: Json | None) -> tuple[str, Figure]:
    """Return sensitivity and specificity at each operating point, on the evaluated or else the validation images."""
    rates = ("sensitivity", "specificity")
    if evaluation:
        points = evaluation["operating_points"]
        rows = [(f"{name}, {rate}", _measured(points[name]["metrics"][rate])) for name in points for rate in rates]
        title = f"{evaluation['n']} {evaluation['split']} images"
    else:
        rows = [
            (f"{name}, {rate}", _interval(getattr(point, rate)))
            for name, point in card.operating_points.items()
            for rate in rates
        ]
        title = "validation images"
    return _estimates(f"Sensitivity and specificity, {title}", rows, "fraction")


def _estimates(
    title: str, rows: Sequence[tuple[str, Interval]], unit: str, *, reference: float | None = None
) -> tuple[str, Figure]:
    label = f"{title}, with 95% intervals; the tables of this section list the values"
    return label, estimates_figure(title, rows, unit, reference=reference)


def _reliability(card: Card | MulticlassCard, evaluation: Json) -> list[tuple[str, Figure]]:
    """Return the reliability diagram, or one per class for a multiclass model."""
    if isinstance(card, Card):
        by_event = {"pneumonia": evaluation.get("reliability", ())}
    else:
        by_event = {name: result.get("reliability", ()) for name, result in evaluation["by_class"].items()}
    return [
        (
            f"Reliability diagram: observed rate of {event} by probability, with 95% intervals; the table lists the values",
            reliability_figure(
                "Reliability" if isinstance(card, Card) else event,
                msgspec.convert(bins, list[ReliabilityBin]),
                run_style(0),
                event=event,
            ),
        )
        for event, bins in by_event.items()
        if bins
    ]


def _measured(interval: Json) -> Interval:
    return msgspec.convert(interval, Interval)


def _interval(proportion: Proportion) -> Interval:
    return Interval(proportion.value, proportion.low, proportion.high, proportion.method, proportion.n)
