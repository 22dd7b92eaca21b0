"""The report's table: its counts as the specification restored them by hand, and scikit-learn's numbers from them."""

import numpy as np
import pytest
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Comparison, Confusion, RunSummary
from pneumoscope.reproduction.published import COUNTS, ERRATUM, PRINTED, published_table, restore
from pneumoscope.statistics.intervals import newcombe

# TP, FN, TN, FP of each row, worked by hand.
BY_HAND = {
    "alexnet-sgd": (386, 4, 112, 122),
    "alexnet-adam": (363, 27, 213, 21),
    "alexnet-adam-32": (389, 1, 142, 92),
    "vgg19-rmsprop": (382, 8, 176, 58),
    "vgg19-adam": (384, 6, 168, 66),
    "vgg19-adam-32": (385, 5, 177, 57),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_are_restored(name):
    assert restore(name, *PRINTED[name][:4]) == Confusion(*BY_HAND[name])


@pytest.mark.parametrize(
    ("place", "value", "column"),
    [(0, 0.923076 - 0.0016, "accuracy"), (1, 0.9318, "Recall"), (2, 0.9453, "accuracy"), (3, 0.938, "F1")],
)
def test_a_row_that_does_not_add_up_is_refused(place, value, column):
    """0.9453 and 0.938 are the true precision and F1: read as printed columns they do not fit."""
    printed = list(PRINTED["alexnet-adam"][:4])
    printed[place] = value
    with pytest.raises(UndefinedMetricError, match=f"row 'alexnet-adam' prints {column} "):
        restore("alexnet-adam", *printed)


def rows_beside(counts, *runs):
    comparison = Comparison(
        images={"counts": counts}, point="half", runs=runs, pairs=(), sentences=(), command="", created="", version=""
    )
    return published_table(comparison).rows


def test_rows_carry_the_standard_definitions():
    rows = rows_beside(COUNTS)
    assert [row.name for row in rows] == list(PRINTED)
    for row in rows:
        tp, fn, tn, fp = BY_HAND[row.name]
        labels, called = np.repeat([1, 1, 0, 0], [tp, fn, tn, fp]), np.repeat([1, 0, 0, 1], [tp, fn, tn, fp])
        assert row.metrics["precision"].value == pytest.approx(metrics.precision_score(labels, called))
        assert row.metrics["f1"].value == pytest.approx(metrics.f1_score(labels, called))
        assert row.metrics["specificity"].value == pytest.approx(row.printed["Precision"], abs=1e-4)
        assert row.metrics["accuracy"].method == "wilson"
        assert row.metrics["mcc"].method == "bootstrap of images"
    adam = rows[1]
    assert adam.metrics["precision"].value == pytest.approx(0.9453, abs=5e-5)
    assert adam.metrics["f1"].value == pytest.approx(0.9380, abs=5e-5)
    assert (adam.average_train_accuracy, adam.average_validation_accuracy) == (0.90870553, 0.85345269)
    assert adam.printed == {"Accuracy": 0.923077, "Recall": 0.9308, "Precision": 0.9103, "F1": 0.9204}


def ours(name, *cells, size=224, weights="none"):
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


def test_ours_stand_beside_the_reports():
    runs = [
        ours("alexnet-sgd", 380, 10, 200, 34),
        ours("alexnet-adam", 360, 30, 212, 22),
        ours("vgg19-adam", 384, 6, 100, 134, weights="imagenet"),
        ours("vgg19-adam-32", 385, 5, 177, 57, size=64),
        ours("mine", 390, 0, 234, 0),
    ]
    rows = {row.name: row for row in rows_beside(COUNTS, *runs)}
    expected = newcombe(580, 624, 498, 624)
    assert rows["alexnet-sgd"].difference == expected
    assert rows["alexnet-sgd"].sentence == (
        f"alexnet-sgd: accuracy 0.929 here, 0.798 in the report, +13.1 points [{100 * expected.low:.1f},"
        f" {100 * expected.high:.1f}]; ours is higher (unpaired)."
    )
    assert "no difference can be shown" in rows["alexnet-adam"].sentence
    assert rows["vgg19-adam"].sentence.endswith("; ours is lower (unpaired).")
    assert rows["vgg19-adam-32"].sentence.endswith(
        "(unpaired). Ours was made otherwise: image side in pixels 64, not 224; starting weights none, not imagenet."
    )
    assert rows["vgg19-rmsprop"].difference is None
    assert rows["vgg19-rmsprop"].sentence == "vgg19-rmsprop: not among these runs."
    assert "mine" not in rows


def test_other_images_are_not_compared():
    row = rows_beside({"NORMAL": 5, "PNEUMONIA": 5}, ours("alexnet-adam", 5, 0, 5, 0))[1]
    assert row.difference is None
    assert "ours was judged on 5 NORMAL and 5 PNEUMONIA images" in row.sentence


def test_the_erratum_says_what_the_counts_say():
    tp, fn, _, fp = BY_HAND["alexnet-adam"]
    assert f"{tp} / {tp + fp} = {tp / (tp + fp):.3f}" in ERRATUM
    assert f"F1 is {2 * tp / (2 * tp + fn + fp):.3f}" in ERRATUM
    assert "the report prints 0.910" in ERRATUM
    assert "it prints 0.920" in ERRATUM
