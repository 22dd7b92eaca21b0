"""The report's published table, its erratum, and the comparison of runs with it.

The report prints accuracy, "Recall", "Precision" and "F1" of six networks on 390 pneumonia and 234 normal images. The counts
behind each row are reconstructed from these numbers and checked against all four columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from pneumoscope.core.comparison import Comparison, ReferenceRow, ReferenceTable, RunGroup, RunSummary
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import Confusion
from pneumoscope.evaluation.comparison.paired_findings import percentage_points
from pneumoscope.statistics.intervals import newcombe
from pneumoscope.statistics.metrics import threshold_metrics

__all__ = ["COUNTS", "ERRATUM", "PRINTED", "published_table", "reconstruct_counts"]

COUNTS = {"NORMAL": 234, "PNEUMONIA": 390}
ERRATUM = (
    'The report\'s column "Precision" is the specificity, and its column "F1" is the harmonic mean of sensitivity and'
    " specificity. The four printed columns determine the counts of every row, because there are 390 PNEUMONIA and 234"
    ' NORMAL images; with these counts, "Precision" equals TN / (TN + FP) to the last printed digit. The values here are'
    " computed from the counts by the standard definitions: for alexnet-adam the precision is 363 / 384 = 0.945, where the"
    " report prints 0.910, and F1 is 0.938, where it prints 0.920. Accuracy and recall (sensitivity) are correct as printed."
)

# Accuracy, "Recall", "Precision" and "F1" as named in the report; then average training and validation accuracy.
PRINTED: Mapping[str, tuple[float, float, float, float, float, float]] = {
    "alexnet-sgd": (0.798077, 0.9897, 0.4786, 0.6452, 0.86744857, 0.78132993),
    "alexnet-adam": (0.923077, 0.9308, 0.9103, 0.9204, 0.90870553, 0.85345269),
    "alexnet-adam-32": (0.850962, 0.9974, 0.6068, 0.7545, 0.9216358, 0.91636829),
    "vgg19-rmsprop": (0.894231, 0.9795, 0.7521, 0.8509, 0.9654489, 0.94774084),
    "vgg19-adam": (0.884615, 0.9846, 0.7179, 0.8304, 0.94242966, 0.93094630),
    "vgg19-adam-32": (0.900641, 0.9872, 0.7564, 0.8565, 0.9375131, 0.95336744),
}

# Keras, in which the report was written, decides at 0.5.
_OPERATING_POINT = "half"
# Network, optimizer and batch size of each row. Its curves show that VGG19 started from ImageNet weights.
_SETTINGS = {
    "alexnet-sgd": ("alexnet", "sgd", 64),
    "alexnet-adam": ("alexnet", "adam", 64),
    "alexnet-adam-32": ("alexnet", "adam", 32),
    "vgg19-rmsprop": ("vgg19", "rmsprop", 64),
    "vgg19-adam": ("vgg19", "adam", 64),
    "vgg19-adam-32": ("vgg19", "adam", 32),
}


def reconstruct_counts(name: str, accuracy: float, recall: float, precision: float, f1: float) -> Confusion:
    """Return the confusion matrix behind one printed row, with "Precision" read as specificity.

    Args:
        name: Name of the row, for the message.
        accuracy: As printed, 6 decimals.
        recall, precision, f1: As printed, 4 decimals.

    Raises:
        UndefinedMetricError: The four columns contradict each other.
    """
    tp, tn = round(recall * COUNTS["PNEUMONIA"]), round(precision * COUNTS["NORMAL"])
    counts = Confusion(tp, COUNTS["PNEUMONIA"] - tp, tn, COUNTS["NORMAL"] - tn)
    sensitivity, specificity = tp / COUNTS["PNEUMONIA"], tn / COUNTS["NORMAL"]
    harmonic_mean = 2 * sensitivity * specificity / ((sensitivity + specificity) or 1)
    printed = {"accuracy": accuracy, "Recall": recall, "Precision": precision, "F1": f1}
    recomputed = {
        "accuracy": (tp + tn) / sum(COUNTS.values()),
        "Recall": sensitivity,
        "Precision": specificity,
        "F1": harmonic_mean,
    }
    for column, value in printed.items():
        # One unit of the last digit, because the report truncates some numbers and rounds others.
        if abs(recomputed[column] - value) > (1e-6 if column == "accuracy" else 1e-4):
            raise UndefinedMetricError(
                f"row {name!r} prints {column} {value}, but the counts from the other columns ({tp} of 390, {tn} of 234)"
                f" give {recomputed[column]:.6f}"
            )
    return counts


def published_table(comparison: Comparison) -> ReferenceTable:
    """Return the six published rows, each with its difference from the run of the same name at the operating point.

    A row without such a run has no difference, and neither has any row if the test images are not those of the report.
    """
    runs, counts = {run.name: run for run in comparison.runs}, comparison.images["counts"]
    groups = {group.name: group for group in comparison.groups}
    point = comparison.operating_point
    rows = tuple(
        _row(name, printed, runs.get(name), groups.get(name), counts, point) for name, printed in PRINTED.items()
    )
    return ReferenceTable(note=ERRATUM, rows=rows)


def _row(
    name: str,
    printed: tuple[float, float, float, float, float, float],
    run: RunSummary | None,
    group: RunGroup | None,
    counts: Mapping[str, int],
    operating_point: str,
) -> ReferenceRow:
    accuracy, recall, precision, f1, train, validation = printed
    confusion = reconstruct_counts(name, accuracy, recall, precision, f1)
    if group is None:
        difference, sentence = _compare_with_run(name, confusion, run, counts, operating_point)
    else:
        difference, sentence = None, _compare_with_group(name, confusion, group, counts, operating_point)
    columns = {"Accuracy": accuracy, "Recall": recall, "Precision": precision, "F1": f1}
    return ReferenceRow(name, columns, confusion, _metrics(confusion), train, validation, difference, sentence)


@functools.cache
def _metrics(counts: Confusion) -> dict[str, Interval]:
    """Return the metrics by their standard definitions. Patients are not published, so images count as independent."""
    decisions = np.repeat([True, False, False, True], [counts.tp, counts.fn, counts.tn, counts.fp])
    labels = np.repeat([True, True, False, False], [counts.tp, counts.fn, counts.tn, counts.fp])
    metrics = threshold_metrics(decisions, labels, None)
    return {
        name: dataclasses.replace(interval, method=interval.method.replace("patient bootstrap", "bootstrap of images"))
        for name, interval in metrics.items()
    }


def _compare_with_group(
    name: str, published: Confusion, group: RunGroup, counts: Mapping[str, int], operating_point: str
) -> str:
    """Return the mean over seeds beside the published accuracy, as a sentence; not tested, since the report has one seed."""
    if dict(counts) != COUNTS:
        return f"{name}: not compared. The runs were evaluated on other images than those of the report."
    spread, accuracy = group.metrics["accuracy"], _metrics(published)["accuracy"]
    value = accuracy.value or 0.0
    place = "within the range of the seeds"
    if value > spread.maximum:
        place = "above all seeds"
    elif value < spread.minimum:
        place = "below all seeds"
    return (
        f"{name}: mean accuracy {spread.mean} over {group.members_text()}, range {spread.minimum:.3f} to {spread.maximum:.3f},"
        f" at the operating point {operating_point}; {accuracy} in the report, {place}."
    )


def _compare_with_run(
    name: str, published: Confusion, run: RunSummary | None, counts: Mapping[str, int], operating_point: str
) -> tuple[Interval | None, str]:
    if run is None:
        return None, f"{name}: no run with this name."
    if dict(counts) != COUNTS:
        return None, (
            f"{name}: not compared. The run was evaluated on {counts.get('NORMAL', 0)} NORMAL and"
            f" {counts.get('PNEUMONIA', 0)} PNEUMONIA images, the report on 234 and 390."
        )
    n = sum(COUNTS.values())
    correct, published_correct = run.confusion.tp + run.confusion.tn, published.tp + published.tn
    # The published decisions are not known by image, so the results are treated as independent although the images are the
    # same. The interval is wider than a paired one.
    difference = newcombe(correct, n, published_correct, n)
    result = "not significant"
    if difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high:
        result = f"significantly {'higher' if difference.low > 0 else 'lower'}"
    return difference, (
        f"{name}: accuracy {correct / n:.3f} here, at the operating point {operating_point}, and"
        f" {published_correct / n:.3f} in the report; here minus the report: {percentage_points(difference)}, {result}"
        f" (unpaired interval).{_setting_differences(name, run, operating_point)}"
    )


def _setting_differences(name: str, run: RunSummary, operating_point: str) -> str:
    """Return a sentence on the settings of the run that differ from the report; they may explain the difference."""
    network, optimizer, batch = _SETTINGS[name]
    settings = {
        "network": network,
        "optimizer": optimizer,
        "batch": batch,
        "epochs": 15,
        "image_size": 224,
        "weights": "imagenet" if network == "vgg19" else "none",
    }
    names = {"batch": "batch size", "image_size": "image size in pixels", "weights": "initial weights"}
    differences = [
        f"{names.get(field, field)} {getattr(run, field)} instead of {value}"
        for field, value in settings.items()
        if getattr(run, field) != value
    ]
    if operating_point != _OPERATING_POINT:
        differences.append("a threshold that was chosen on validation images instead of 0.5")
    return f" Settings that differ from the report: {'; '.join(differences)}." if differences else ""
