"""The report's published table, its erratum, and the differences to runs made here.

The report prints accuracy, "recall", "precision" and "F1" of six networks on 390 pneumonia and 234 normal images. The counts
behind them are restored and checked against all four columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Comparison, Confusion, Interval, ReferenceRow, ReferenceTable, RunSummary
from pneumoscope.evaluation.paired import points_text
from pneumoscope.statistics.intervals import newcombe
from pneumoscope.statistics.metrics import threshold_metrics

__all__ = ["COUNTS", "ERRATUM", "PRINTED", "published_table", "restore"]

COUNTS = {"NORMAL": 234, "PNEUMONIA": 390}
ERRATUM = (
    'The report\'s column "Precision" is specificity and its column "F1" is the harmonic mean of sensitivity and'
    " specificity. Its four printed columns fix the counts of every row, since there are 390 PNEUMONIA and 234 NORMAL"
    ' images; with those counts "Precision" is TN / (TN + FP) to the last printed digit. The rows here are computed from'
    " the counts by the standard definitions: for alexnet-adam the precision is 363 / 384 = 0.945 where the report"
    " prints 0.910, and F1 is 0.938 where it prints 0.920. Accuracy and recall (sensitivity) stand as printed."
)

# Accuracy, "Recall", "Precision" and "F1" under the report's own names, then average training and validation accuracy.
PRINTED: Mapping[str, tuple[float, float, float, float, float, float]] = {
    "alexnet-sgd": (0.798077, 0.9897, 0.4786, 0.6452, 0.86744857, 0.78132993),
    "alexnet-adam": (0.923077, 0.9308, 0.9103, 0.9204, 0.90870553, 0.85345269),
    "alexnet-adam-32": (0.850962, 0.9974, 0.6068, 0.7545, 0.9216358, 0.91636829),
    "vgg19-rmsprop": (0.894231, 0.9795, 0.7521, 0.8509, 0.9654489, 0.94774084),
    "vgg19-adam": (0.884615, 0.9846, 0.7179, 0.8304, 0.94242966, 0.93094630),
    "vgg19-adam-32": (0.900641, 0.9872, 0.7564, 0.8565, 0.9375131, 0.95336744),
}

# How the report made each row: network, optimizer, batch. That VGG19 started from ImageNet's weights is read off its curves.
_MADE = {
    "alexnet-sgd": ("alexnet", "sgd", 64),
    "alexnet-adam": ("alexnet", "adam", 64),
    "alexnet-adam-32": ("alexnet", "adam", 32),
    "vgg19-rmsprop": ("vgg19", "rmsprop", 64),
    "vgg19-adam": ("vgg19", "adam", 64),
    "vgg19-adam-32": ("vgg19", "adam", 32),
}


def restore(name: str, accuracy: float, recall: float, precision: float, f1: float) -> Confusion:
    """The four counts behind one printed row, reading "Precision" as specificity.

    Args:
        name: of the row, for the message.
        accuracy: as printed, 6 decimals.
        recall, precision, f1: as printed, 4 decimals.
    Raises:
        UndefinedMetricError: no counts of 390 and 234 images give the row, to the printed digit.
    """
    tp, tn = round(recall * COUNTS["PNEUMONIA"]), round(precision * COUNTS["NORMAL"])
    found = Confusion(tp, COUNTS["PNEUMONIA"] - tp, tn, COUNTS["NORMAL"] - tn)
    sensitivity, specificity = tp / COUNTS["PNEUMONIA"], tn / COUNTS["NORMAL"]
    harmonic = 2 * sensitivity * specificity / ((sensitivity + specificity) or 1)
    printed = {"accuracy": accuracy, "Recall": recall, "Precision": precision, "F1": f1}
    again = {
        "accuracy": (tp + tn) / sum(COUNTS.values()),
        "Recall": sensitivity,
        "Precision": specificity,
        "F1": harmonic,
    }
    for column, value in printed.items():
        # One unit of the last digit, since the report sometimes cuts and sometimes rounds.
        if abs(again[column] - value) > (1e-6 if column == "accuracy" else 1e-4):
            raise UndefinedMetricError(
                f"row {name!r} prints {column} {value}, but the counts of its other columns ({tp} of 390, {tn} of 234)"
                f" give {again[column]:.6f}"
            )
    return found


def published_table(comparison: Comparison) -> ReferenceTable:
    """Return the report's six rows with their differences to the runs of the same names.

    Every row is there, whether or not there is such a run. The difference is None where the test images are not the report's.
    """
    runs, counts = {run.name: run for run in comparison.runs}, comparison.images["counts"]
    return ReferenceTable(
        note=ERRATUM, rows=tuple(_row(name, printed, runs.get(name), counts) for name, printed in PRINTED.items())
    )


def _row(
    name: str,
    printed: tuple[float, float, float, float, float, float],
    run: RunSummary | None,
    counts: Mapping[str, int],
) -> ReferenceRow:
    accuracy, recall, precision, f1, train, validation = printed
    restored = restore(name, accuracy, recall, precision, f1)
    ours, sentence = _beside(name, restored, run, counts)
    columns = {"Accuracy": accuracy, "Recall": recall, "Precision": precision, "F1": f1}
    return ReferenceRow(name, columns, restored, _standard(restored), train, validation, ours, sentence)


@functools.cache
def _standard(counts: Confusion) -> dict[str, Interval]:
    """The standard definitions; which image was whose is not published, so every image stands for itself."""
    decisions = np.repeat([True, False, False, True], [counts.tp, counts.fn, counts.tn, counts.fp])
    labels = np.repeat([True, True, False, False], [counts.tp, counts.fn, counts.tn, counts.fp])
    metrics = threshold_metrics(decisions, labels, None)
    return {
        name: dataclasses.replace(found, method=found.method.replace("patient bootstrap", "bootstrap of images"))
        for name, found in metrics.items()
    }


def _beside(
    name: str, published: Confusion, run: RunSummary | None, counts: Mapping[str, int]
) -> tuple[Interval | None, str]:
    if run is None:
        return None, f"{name}: not among these runs."
    if dict(counts) != COUNTS:
        return None, (
            f"{name}: ours was judged on {counts.get('NORMAL', 0)} NORMAL and {counts.get('PNEUMONIA', 0)} PNEUMONIA"
            " images and the report's on 234 and 390, so the two are not compared."
        )
    n = sum(COUNTS.values())
    right, theirs = run.confusion.tp + run.confusion.tn, published.tp + published.tn
    # What the report's networks said of each image is not published, so the two count as independent although the images
    # are the same ones: the interval is wider than a paired one.
    difference = newcombe(right, n, theirs, n)
    judged = "no difference can be shown"
    if difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high:
        judged = f"ours is {'higher' if difference.low > 0 else 'lower'}"
    return difference, (
        f"{name}: accuracy {right / n:.3f} here, {theirs / n:.3f} in the report, {points_text(difference)}; {judged}"
        f" (unpaired).{_unlike(name, run)}"
    )


def _unlike(name: str, run: RunSummary) -> str:
    """Where ours was made otherwise: a difference of results may come from there."""
    network, optimizer, batch = _MADE[name]
    theirs = {
        "network": network,
        "optimizer": optimizer,
        "batch": batch,
        "epochs": 15,
        "image_size": 224,
        "weights": "imagenet" if network == "vgg19" else "none",
    }
    words = {"image_size": "image side in pixels", "weights": "starting weights"}
    differ = [
        f"{words.get(field, field)} {getattr(run, field)}, not {value}"
        for field, value in theirs.items()
        if getattr(run, field) != value
    ]
    return f" Ours was made otherwise: {'; '.join(differ)}." if differ else ""
