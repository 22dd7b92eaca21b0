"""Draw the flow of images from the data set through the evaluation to decisions (or predicted classes) and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.core.messages import counted
from pneumoscope.core.multiclass_results import MulticlassEvaluation
from pneumoscope.core.results import Evaluation
from pneumoscope.reporting.style import COLORS, new_figure, short

__all__ = ["class_flow_figure", "duplicate_lines", "excluded_lines", "flow_figure"]

_INK, _MUTED, _SURFACE = (COLORS[name][0] for name in ("ink", "muted", "surface"))
_MAX_SOURCE, _MAX_LABELS = 36, 44  # characters
_SPLITS = {"no split": "no split", "unused": "set aside (unused)"}
# Layout, in points from the upper left corner.
_WIDTH, _LINE, _PADDING, _GAP, _MARGIN = 470, 14, 8, 30, 6
_LEFT, _RIGHT = (4, 228), (242, 466)  # the two columns


_Line = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class _Box:
    left: float
    right: float
    top: float
    lines: tuple[str, ...]

    @property
    def bottom(self) -> float:
        return self.top + _LINE * len(self.lines) + 2 * _PADDING

    @property
    def center(self) -> float:
        return (self.left + self.right) / 2

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def flow_figure(title: str, evaluation: Evaluation, operating_point: str) -> Figure:
    """Return the STARD flow diagram of an evaluation. Must be called within `style.drawing()`.

    It contains only what is recorded: images removed before they entered the data set are unknown.

    Args:
        title: Name of the run.
        evaluation: The evaluation; without a recorded flow, the diagram begins with the evaluated images.
        operating_point: Operating point of the decisions.
    """
    boxes, lines = _selection(evaluation)
    evaluated = boxes[-1]
    counts = evaluation.operating_points[operating_point].confusion
    for column, decision, positive, negative in (
        (_LEFT, "pneumonia", counts.tp, counts.fp),
        (_RIGHT, "no pneumonia", counts.fn, counts.tn),
    ):
        texts = (f"Decision at {operating_point}: {decision}", counted(positive + negative, "image"))
        decided = _Box(*column, evaluated.bottom + _GAP, texts)
        labels = _Box(*column, decided.bottom + _GAP, (f"Label PNEUMONIA: {positive:,}", f"Label NORMAL: {negative:,}"))
        turn = evaluated.bottom + _GAP / 2
        start, end = (evaluated.center, evaluated.bottom), (decided.center, decided.top)
        lines.append([start, (evaluated.center, turn), (decided.center, turn), end])
        lines.append([(decided.center, decided.bottom), (labels.center, labels.top)])
        boxes += [decided, labels]
    return _draw(title, boxes, lines)


def class_flow_figure(title: str, evaluation: MulticlassEvaluation) -> Figure:
    """Return the flow diagram of a multiclass evaluation. Must be called within `style.drawing()`.

    Args:
        title: Name of the run.
        evaluation: The evaluation; see `flow_figure`.
    """
    boxes, lines = _selection(evaluation)
    evaluated = boxes[-1]
    rows = ["Predicted class, with the labels of its images"]
    for index, name in enumerate(evaluation.classes):
        labels = {label: row[index] for label, row in zip(evaluation.classes, evaluation.confusion, strict=True)}
        rows.append(f"{short(name, _MAX_SOURCE)}: {counted(sum(labels.values()), 'image')}{_labels_text(labels, name)}")
    predictions = _Box(_LEFT[0], _RIGHT[1], evaluated.bottom + _GAP, tuple(rows))
    lines.append([(evaluated.center, evaluated.bottom), (evaluated.center, predictions.top)])
    return _draw(title, [*boxes, predictions], lines)


def _labels_text(labels: Mapping[str, int], predicted: str) -> str:
    """Return the label counts of a predicted class, or only the correct count if not all fit on a line."""
    listed = ", ".join(f"{count:,} {label}" for label, count in labels.items() if count)
    if len(listed) > _MAX_LABELS:
        return f"; {labels[predicted]:,} with this label"
    return f"; {listed}" if listed else ""


def _draw(title: str, boxes: Sequence[_Box], lines: Sequence[_Line]) -> Figure:
    height = max(box.bottom for box in boxes) + _MARGIN
    figure = new_figure(_WIDTH, height + 24)
    axes: Axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    axes.set_title(short(title))
    for path in lines:
        *before, start, end = path
        xs, ys = zip(*(*before, start, end), strict=True)
        axes.plot(xs, ys, color=_MUTED, linewidth=1, solid_joinstyle="miter")
        arrow = {"arrowstyle": "-|>", "color": _MUTED, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=arrow)
    for box in boxes:
        size = (box.right - box.left, box.bottom - box.top)
        axes.add_patch(
            Rectangle((box.left, box.top), *size, facecolor=_SURFACE, edgecolor=_MUTED, linewidth=1, zorder=3)
        )
        for index, line in enumerate(box.lines):
            y = box.top + _PADDING + _LINE * (index + 0.5)
            axes.text(box.center, y, line, ha="center", va="center", fontsize=10, color=_INK, zorder=4)
    return figure


def _selection(evaluation: Evaluation | MulticlassEvaluation) -> tuple[list[_Box], list[_Line]]:
    """Return the boxes from the data set to the evaluated images, and the arrows between them."""
    boxes: list[_Box] = []
    lines: list[_Line] = []
    top = float(_MARGIN)
    if flow := evaluation.flow:
        source = short(flow.source, _MAX_SOURCE)
        whole = _Box(*_LEFT, top, ("Labeled images", source, _text(flow.labeled)))
        boxes.append(whole)
        top = whole.bottom + _GAP
        if excluded := excluded_lines(flow):
            aside = _Box(*_RIGHT, whole.bottom + _GAP / 2, ("Not evaluated", *excluded))
            boxes.append(aside)
            top = aside.bottom + _GAP / 2
            lines.append([(whole.center, aside.middle), (aside.left, aside.middle)])
        lines.append([(whole.center, whole.bottom), (whole.center, top)])
    evaluated_count = ImageCount(evaluation.n, evaluation.patients, evaluation.unknown_patients)
    texts = [f"Evaluated images, split {evaluation.split}", _text(evaluated_count)]
    if evaluation.rejected and evaluation.rejected.reasons:
        texts.append(f"{sum(evaluation.rejected.reasons.values()):,} rejected by predict, evaluated too")
    if evaluation.flow:
        texts += duplicate_lines(evaluation.flow)
    boxes.append(_Box(*_LEFT, top, tuple(texts)))
    return boxes, lines


def excluded_lines(flow: ImageFlow) -> list[str]:
    """Return one line for each reason why images or files were not evaluated."""
    lines = [f"{_SPLITS.get(split, f'split {split}')}: {_text(count)}" for split, count in flow.other_splits.items()]
    if flow.unreadable:
        lines.append(f"cannot be read: {counted(flow.unreadable, 'image')}")
    if flow.skipped:
        lines.append(f"other files: {flow.skipped:,}")
    return lines


def duplicate_lines(flow: ImageFlow) -> list[str]:
    """Return one line for each kind of byte-identical images among the evaluated ones."""
    lines = []
    if flow.copies:
        lines.append(f"{flow.copies:,} identical to an earlier one")
    if flow.contradictory:
        lines.append(f"{flow.contradictory:,} with another label elsewhere")
    return lines


def _text(count: ImageCount) -> str:
    unknown = count.unknown_patients
    if not unknown:
        patients = counted(count.patients, "patient")
    elif unknown == count.images:
        patients = "patients unknown"
    else:
        patients = f"{counted(count.patients - unknown, 'patient')}, {unknown:,} unknown"
    return f"{counted(count.images, 'image')}, {patients}"
