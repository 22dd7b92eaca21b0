"""Render records as HTML for notebooks (`_repr_html_`): self-contained, without scripts or external assets."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.messages import counted, decision_label, patients_text
from pneumoscope.core.prediction_messages import prediction_message, site_note
from pneumoscope.core.result_forms import method_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pneumoscope.core.comparison import Comparison, RunGroup
    from pneumoscope.core.interval import Interval
    from pneumoscope.core.multiclass_prediction import MulticlassPrediction
    from pneumoscope.core.multiclass_results import MulticlassComparison, MulticlassEvaluation
    from pneumoscope.core.prediction import Prediction
    from pneumoscope.core.results import Evaluation

__all__ = [
    "comparison_html",
    "evaluation_html",
    "facts_html",
    "intervals_html",
    "multiclass_comparison_html",
    "multiclass_evaluation_html",
    "multiclass_prediction_html",
    "prediction_html",
]

_COLORS = {
    "pneumonia": "#a63d00",
    "no_pneumonia": "#1f5fae",
    "uncertain": "#6b4fa0",
    "rejected": "#5b6270",
    "classified": "#1f5fae",
    None: "#b00020",
}
_WIDTH, _HEIGHT = 260, 14  # pixels; size of the probability scale


def prediction_html(prediction: Prediction, picture: bytes | None = None) -> str:
    """Return a prediction as HTML: file, decision, probability with its interval, explanation and notice.

    Args:
        prediction: The prediction.
        picture: PNG displayed above the text, such as the image with its heatmap.
    """
    label = "Unreadable" if prediction.decision is None else decision_label(prediction.decision)
    parts = [_picture_html(picture), f"<code>{escape(prediction.path)}</code><br>"]
    parts.append(f'<strong style="color:{_COLORS[prediction.decision]}">{escape(label)}</strong>')
    if prediction.probability is not None:
        parts.append(f" &nbsp; probability of pneumonia {_interval_text(prediction)}<br>{_scale(prediction)}")
    if message := prediction_message(prediction):
        parts.append(f"<br>{escape(message)}")
    model, point = escape(prediction.model.name), escape(prediction.operating_point)
    note = site_note(prediction.model)
    site = f", {escape(note[0].lower() + note[1:])}" if note else ""
    parts.append(
        f"<br><small>Model {model}, operating point {point}{site}. {escape(prediction.model.notice or NOTICE)}</small>"
    )
    return f"<div>{''.join(parts)}</div>"


def _picture_html(picture: bytes | None) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture).decode()
    return f'<img src="data:image/png;base64,{data}" alt="Image with heatmap" style="max-width:480px"><br>'


def multiclass_prediction_html(prediction: MulticlassPrediction, picture: bytes | None = None) -> str:
    """Return a multiclass prediction as HTML: file, decision, class probabilities, explanation and notice.

    Args:
        prediction: The prediction.
        picture: See `prediction_html`.
    """
    label = "Unreadable" if prediction.decision is None else decision_label(prediction.decision)
    if prediction.decision == "classified":
        label += f": {prediction.predicted_class}"
    parts = [
        _picture_html(picture),
        f"<code>{escape(prediction.path)}</code><br>",
        f'<strong style="color:{_COLORS[prediction.decision]}">{escape(label)}</strong>',
    ]
    if prediction.class_probabilities is not None:
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td>{value:.3f}</td></tr>'
            for name, value in prediction.class_probabilities.items()
        )
        parts.append(f"<table><tr><th></th><th>probability</th></tr>{rows}</table>")
    if message := prediction_message(prediction):
        parts.append(f"<br>{escape(message)}")
    parts.append(
        f"<br><small>Model {escape(prediction.model.name)}. {escape(prediction.model.notice or NOTICE)}</small>"
    )
    return f"<div>{''.join(parts)}</div>"


def facts_html(title: str, facts: Mapping[str, str], notice: str) -> str:
    """Return a titled two-column table of names and values, followed by the notice."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><strong>{escape(title)}</strong><table>{rows}</table><small>{escape(notice)}</small></div>"


def intervals_html(title: str, intervals: Iterable[tuple[str, Interval]]) -> str:
    """Return a titled table of named intervals."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td>{escape(str(interval))}</td><td>{interval.n}</td>'
        f"<td>{escape(method_name(interval.method))}</td></tr>"
        for name, interval in intervals
    )
    head = "<tr><th></th><th>value [interval]</th><th>n</th><th>method</th></tr>"
    return f"<strong>{escape(title)}</strong><table>{head}{rows}</table>"


def evaluation_html(evaluation: Evaluation) -> str:
    """Return an evaluation as HTML: threshold-free metrics, a table per operating point, subgroups and differences."""
    labels = ", ".join(f"{n} {label}" for label, n in evaluation.counts.items())
    patients = patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    title = f"{evaluation.name}: {evaluation.n} {evaluation.split} images ({labels}; {patients})"
    parts = [intervals_html(title, evaluation.metrics.items())]
    for name, point in evaluation.operating_points.items():
        parts.append(intervals_html(f"{name}: threshold at {point.threshold_text()}", point.metrics.items()))
        if at := point.predictive_values:
            values = at.named_intervals().items()
            parts.append(intervals_html(f"{name}, at a prevalence of {at.prevalence:g}", values))
    if curve := evaluation.decision_curve[1::2]:
        steps = [(f"threshold probability {step.threshold_probability:g}", step.net_benefit) for step in curve]
        parts.append(intervals_html("net benefit", steps))
    parts += _breakdown(evaluation)
    return f"<div>{''.join(parts)}<small>{escape(evaluation.notice)}</small></div>"


def multiclass_evaluation_html(evaluation: MulticlassEvaluation) -> str:
    """Return a multiclass evaluation as HTML: metrics, confusion matrix, classes, pairs, sets and breakdown."""
    labels = ", ".join(f"{n} {label}" for label, n in evaluation.counts.items())
    patients = patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    title = f"{evaluation.name}: {evaluation.n} {evaluation.split} images ({labels}; {patients})"
    parts = [intervals_html(title, evaluation.metrics.items())]
    head = "".join(f"<th>{escape(name)}</th>" for name in evaluation.classes)
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>{"".join(f"<td>{count}</td>" for count in counts)}</tr>'
        for name, counts in zip(evaluation.classes, evaluation.confusion, strict=True)
    )
    parts.append(f"<strong>images by class and predicted class</strong><table><tr><th></th>{head}</tr>{rows}</table>")
    for name, result in evaluation.by_class.items():
        parts.append(intervals_html(f"{name} against the rest", result.metrics.items()))
    for pair in evaluation.pairs:
        parts.append(intervals_html(f"{pair.first} against {pair.second}", pair.named_metrics().items()))
    if evaluation.coverage is not None:
        by_class = [
            (f"{metric}, {name}", value)
            for name, result in evaluation.by_class.items()
            for metric, value in result.sets.items()
        ]
        title = f"prediction sets for a coverage of {evaluation.coverage:.0%}"
        parts.append(intervals_html(title, [*evaluation.sets.items(), *by_class]))
    parts += _breakdown(evaluation)
    return f"<div>{''.join(parts)}<small>{escape(evaluation.notice)}</small></div>"


def multiclass_comparison_html(comparison: MulticlassComparison) -> str:
    """Return a multiclass comparison as HTML: accuracy and macro AUROC of each run, and the findings."""
    title = f"{counted(len(comparison.runs), 'run')} on {comparison.images['n']} images"
    intervals = [
        (f"{run.name}: {metric}", run.metrics[metric])
        for metric in ("accuracy", "macro_auroc")
        for run in comparison.runs
    ]
    intervals += _group_intervals(comparison.groups, ("accuracy", "macro_auroc"))
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in comparison.sentences)
    return (
        f"<div>{intervals_html(title, intervals)}<ul>{sentences}</ul><small>{escape(comparison.notice)}</small></div>"
    )


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison as HTML: accuracy and AUROC of each run, and the findings."""
    runs = counted(len(comparison.runs), "run")
    title = f"{runs} on {comparison.images['n']} images, operating point {comparison.operating_point}"
    intervals = [
        (f"{run.name}: {metric}", run.test[metric]) for metric in ("accuracy", "auroc") for run in comparison.runs
    ]
    intervals += _group_intervals(comparison.groups, ("accuracy", "auroc"))
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in comparison.sentences)
    return (
        f"<div>{intervals_html(title, intervals)}<ul>{sentences}</ul><small>{escape(comparison.notice)}</small></div>"
    )


def _breakdown(evaluation: Evaluation | MulticlassEvaluation) -> list[str]:
    """Return subgroups, interaction tests and differences from other images; empty without any."""
    parts = _subgroups(evaluation) if evaluation.subgroups else []
    if difference := evaluation.difference:
        title = f"these images minus {difference.reference} ({difference.reference_n} images)"
        parts.append(intervals_html(title, difference.named_intervals().items()))
        parts.append(f"<p>{escape(difference.remark)}</p>")
    return parts


def _subgroups(evaluation: Evaluation | MulticlassEvaluation) -> list[str]:
    point = evaluation.subgroups[0].operating_point
    rows = [
        (f"{group.column}: {group.value}, {name}", interval)
        for group in evaluation.subgroups
        for name, interval in group.metrics.items()
    ]
    tests = "".join(f"<li>{escape(test.sentence)}</li>" for test in evaluation.interactions)
    title = f"subgroups, at the operating point {point}" if point else "subgroups"
    return [intervals_html(title, rows), f"<ul>{tests}</ul>"]


def _group_intervals(groups: Iterable[RunGroup], metrics: Iterable[str]) -> list[tuple[str, Interval]]:
    return [
        (f"{group.name}, mean of {len(group.runs)} {group.unit}: {metric}", group.metrics[metric].mean)
        for metric in metrics
        for group in groups
        if metric in group.metrics
    ]


def _interval_text(prediction: Prediction) -> str:
    interval = prediction.interval
    text = f"<strong>{prediction.probability:.3f}</strong>"
    if interval and interval.low is not None and interval.high is not None:
        text += f" [{interval.low:.3f}, {interval.high:.3f}]"
    return text


def _scale(prediction: Prediction) -> str:
    """Return an SVG scale from 0 to 1 with the probability, its interval and the threshold."""

    def bar(x: float, width: float, y: int, height: int, color: str) -> str:
        return f'<rect x="{_WIDTH * x:.1f}" y="{y}" width="{max(width, 2):.1f}" height="{height}" fill="{color}"/>'

    interval = prediction.interval
    parts = [bar(0, _WIDTH, 6, 2, "#c8ccd2")]
    if interval and interval.low is not None and interval.high is not None:
        parts.append(bar(interval.low, _WIDTH * (interval.high - interval.low), 4, 6, "#9aa3b0"))
    if prediction.threshold is not None:
        parts.append(bar(prediction.threshold, 2, 0, _HEIGHT, "#1c1e21"))
    if prediction.probability is not None:
        parts.append(bar(prediction.probability, 4, 2, 10, _COLORS[prediction.decision]))
    return (
        f'<svg width="{_WIDTH + 4}" height="{_HEIGHT}" role="img" aria-label="Probability scale">{"".join(parts)}</svg>'
    )
