"""The published table: counts reconstructed by hand, and metrics of these counts by scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from pneumoscope.core.comparison import Comparison, RunSummary
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Confusion
from pneumoscope.reproduction.published import COUNTS, ERRATUM, PRINTED, published_table, reconstruct_counts
from pneumoscope.statistics.intervals import newcombe

# TP, FN, TN, FP of each row, computed by hand.
BY_HAND = {
    "alexnet-sgd": (386, 4, 112, 122),
    "alexnet-adam": (363, 27, 213, 21),
    "alexnet-adam-32": (389, 1, 142, 92),
    "vgg19-rmsprop": (382, 8, 176, 58),
    "vgg19-adam": (384, 6, 168, 66),
    "vgg19-adam-32": (385, 5, 177, 57),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_are_reconstructed_from_the_printed_row(name):
    assert reconstruct_counts(name, *PRINTED[name][:4]) == Confusion(*BY_HAND[name])


@pytest.mark.parametrize(
    ("position", "value", "column"),
    [(0, 0.923076 - 0.0016, "accuracy"), (1, 0.9318, "Recall"), (2, 0.9453, "accuracy"), (3, 0.938, "F1")],
)
def test_contradictory_row_is_an_error(position, value, column):
    """The correct precision and F1, 0.9453 and 0.938, contradict the other printed columns."""
    printed = list(PRINTED["alexnet-adam"][:4])
    printed[position] = value
    with pytest.raises(UndefinedMetricError, match=f"row 'alexnet-adam' prints {column} "):
        reconstruct_counts("alexnet-adam", *printed)


def published_rows(counts, *runs, operating_point="half"):
    comparison = Comparison(
        images={"counts": counts},
        operating_point=operating_point,
        runs=runs,
        pairs=(),
        sentences=(),
        command="",
        created="",
        version="",
    )
    return published_table(comparison).rows


def test_metrics_follow_the_standard_definitions():
    rows = published_rows(COUNTS)
    assert [row.name for row in rows] == list(PRINTED)
    for row in rows:
        tp, fn, tn, fp = BY_HAND[row.name]
        labels, decisions = np.repeat([1, 1, 0, 0], [tp, fn, tn, fp]), np.repeat([1, 0, 0, 1], [tp, fn, tn, fp])
        assert row.metrics["precision"].value == pytest.approx(metrics.precision_score(labels, decisions))
        assert row.metrics["f1"].value == pytest.approx(metrics.f1_score(labels, decisions))
        assert row.metrics["specificity"].value == pytest.approx(row.printed["Precision"], abs=1e-4)
        assert row.metrics["accuracy"].method == "wilson"
        assert row.metrics["mcc"].method == "bootstrap of images"
    adam = rows[1]
    assert adam.metrics["precision"].value == pytest.approx(0.9453, abs=5e-5)
    assert adam.metrics["f1"].value == pytest.approx(0.9380, abs=5e-5)
    assert (adam.average_train_accuracy, adam.average_validation_accuracy) == (0.90870553, 0.85345269)
    assert adam.printed == {"Accuracy": 0.923077, "Recall": 0.9308, "Precision": 0.9103, "F1": 0.9204}


def summary(name, *cells, size=224, weights="none"):
    return RunSummary(
        name=name,
        network=name.partition("-")[0],
        optimizer="sgd" if name.endswith("sgd") else "adam",
        batch=32 if name.endswith("32") else 64,
        image_size=size,
        epochs=15,
        seed=0,
        device="cpu",
        weights=weights,
        average_train_accuracy=None,
        average_validation_accuracy=None,
        best_epoch=None,
        seconds=1.0,
        test={},
        confusion=Confusion(*cells),
    )


def test_runs_are_compared_with_the_row_of_the_same_name():
    runs = [
        summary("alexnet-sgd", 380, 10, 200, 34),
        summary("alexnet-adam", 360, 30, 212, 22),
        summary("vgg19-adam", 384, 6, 100, 134, weights="imagenet"),
        summary("vgg19-adam-32", 385, 5, 177, 57, size=64),
        summary("mine", 390, 0, 234, 0),
    ]
    rows = {row.name: row for row in published_rows(COUNTS, *runs)}
    expected = newcombe(580, 624, 498, 624)
    assert rows["alexnet-sgd"].difference == expected
    assert rows["alexnet-sgd"].sentence == (
        "alexnet-sgd: accuracy 0.929 here, at the operating point half, and 0.798 in the report; here minus the report:"
        f" +13.1 percentage points [{100 * expected.low:.1f}, {100 * expected.high:.1f}], significantly higher (unpaired"
        " interval)."
    )
    assert ", not significant (" in rows["alexnet-adam"].sentence
    assert rows["vgg19-adam"].sentence.endswith(", significantly lower (unpaired interval).")
    assert rows["vgg19-adam-32"].sentence.endswith(
        "(unpaired interval). Settings that differ from the report: image size in pixels 64 instead of 224;"
        " initial weights none instead of imagenet."
    )
    assert rows["vgg19-rmsprop"].difference is None
    assert rows["vgg19-rmsprop"].sentence == "vgg19-rmsprop: no run with this name."
    assert "mine" not in rows


def test_accuracy_at_a_chosen_threshold_is_stated():
    row = published_rows(COUNTS, summary("alexnet-adam", 360, 30, 212, 22), operating_point="balanced")[1]
    assert "accuracy 0.917 here, at the operating point balanced, and 0.923 in the report" in row.sentence
    assert row.sentence.endswith(
        " Settings that differ from the report: a threshold that was chosen on validation images instead of 0.5."
    )


def test_runs_on_other_images_are_not_compared():
    row = published_rows({"NORMAL": 5, "PNEUMONIA": 5}, summary("alexnet-adam", 5, 0, 5, 0))[1]
    assert row.difference is None
    assert "not compared. The run was evaluated on 5 NORMAL and 5 PNEUMONIA images" in row.sentence


def test_erratum_agrees_with_the_counts():
    tp, fn, _, fp = BY_HAND["alexnet-adam"]
    assert f"{tp} / {tp + fp} = {tp / (tp + fp):.3f}" in ERRATUM
    assert f"F1 is {2 * tp / (2 * tp + fn + fp):.3f}" in ERRATUM
    assert "the report prints 0.910" in ERRATUM
    assert "it prints 0.920" in ERRATUM
