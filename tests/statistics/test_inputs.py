import numpy as np
import pytest

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import checked, patient_numbers


def test_lists_become_arrays():
    scores, labels = checked([1, 0, 2], [1, 0, 1])
    assert (scores.dtype, labels.dtype) == (np.float64, np.bool_)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [True], r"shape \(2,\) do not go with labels of shape \(1,\)"),
        ([[0.1], [0.2]], [[True], [False]], r"shape \(2, 1\)"),
        ([], [], "there is no image"),
        ([0.1, np.nan, np.inf], [True, False, True], "^2 of 3 scores are not finite"),
    ],
)
def test_what_no_statistic_can_take(scores, labels, message):
    with pytest.raises(UndefinedMetricError, match=message):
        checked(scores, labels)


def test_patients_are_numbered_in_order_of_appearance():
    assert patient_numbers(["b", "a", "b"], 3).tolist() == [0, 1, 0]
    assert patient_numbers(None, 3).tolist() == [0, 1, 2]


def test_a_patient_called_like_a_place_is_not_that_place():
    assert patient_numbers(["", "0"], 2).tolist() == [0, 1]


def test_patients_must_be_as_many_as_images():
    with pytest.raises(UndefinedMetricError, match=r"^2 patients do not go with 3 images"):
        patient_numbers(["a", "b"], 3)
