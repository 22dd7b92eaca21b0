"""Validation of scores, labels and patients."""

import numpy as np
import pytest

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import patient_groups, validate, validate_both_classes


def test_lists_become_arrays_of_float64_and_bool():
    scores, labels = validate([1, 0, 2], [1, 0, 1])
    assert (scores.dtype, labels.dtype) == (np.float64, np.bool_)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [True], r"shape \(2,\) do not match labels of shape \(1,\)"),
        ([[0.1], [0.2]], [[True], [False]], r"shape \(2, 1\)"),
        ([], [], "there are no images"),
        ([0.1, np.nan, np.inf], [True, False, True], "^2 of 3 scores are not finite"),
    ],
)
def test_invalid_scores_and_labels_are_rejected(scores, labels, message):
    with pytest.raises(UndefinedMetricError, match=message):
        validate(scores, labels)


def test_patients_are_numbered_in_order_of_appearance():
    assert patient_groups(["b", "a", "b"], 3).tolist() == [0, 1, 0]
    assert patient_groups(None, 3).tolist() == [0, 1, 2]


def test_a_patient_key_that_equals_the_index_of_an_image_without_patient_is_another_patient():
    assert patient_groups(["", "0"], 2).tolist() == [0, 1]


def test_the_number_of_patients_must_match_the_number_of_images():
    with pytest.raises(UndefinedMetricError, match=r"^2 patients do not match 3 images"):
        patient_groups(["a", "b"], 3)


def test_images_without_a_known_patient_are_separate_groups():
    assert patient_groups(["", "a", "", "a"], 4).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(("labels", "counts"), [([True] * 3, "0 NORMAL and 3"), ([False] * 3, "3 NORMAL and 0")])
def test_a_missing_class_is_an_error_with_the_counts(labels, counts):
    with pytest.raises(
        UndefinedMetricError, match=f"^calibration needs both classes; there are {counts} PNEUMONIA images"
    ):
        validate_both_classes([0.1, 0.2, 0.3], labels, "calibration")
