"""Precision-recall corners, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.precision_recall import precision_recall_curve
from pneumoscope.statistics.roc import auprc


def test_corners_by_hand_with_a_tie() -> None:
    # From the top: 0.9 is a pneumonia; at 0.5 one of each; at 0.1 a normal image.
    sensitivity, precision, thresholds = precision_recall_curve([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    assert thresholds.tolist() == [0.9, 0.5, 0.1]
    assert sensitivity.tolist() == [0.5, 1.0, 1.0]
    assert precision == pytest.approx([1.0, 2 / 3, 0.5])


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn_has_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 12, 80) / 7, rng.random(80) < 0.4
    sensitivity, precision, thresholds = precision_recall_curve(scores, labels)
    theirs_precision, theirs_sensitivity, theirs_thresholds = metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(precision[::-1], theirs_precision[:-1])
    np.testing.assert_allclose(sensitivity[::-1], theirs_sensitivity[:-1])
    np.testing.assert_allclose(thresholds[::-1], theirs_thresholds)
    area = float(np.sum(np.diff(sensitivity, prepend=0.0) * precision))
    assert area == pytest.approx(auprc(scores, labels), abs=1e-12)


def test_one_class_has_no_curve() -> None:
    with pytest.raises(UndefinedMetricError, match="no PNEUMONIA image"):
        precision_recall_curve([0.1, 0.2], [False, False])
