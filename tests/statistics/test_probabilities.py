"""Probabilities for another prevalence, by hand and as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.statistics.probabilities import adjust_prevalence


def test_adjusted_probability_is_that_of_a_population_with_the_target_prevalence():
    """Of 80 pneumonias and 20 normal images, 60 and 5 score alike: 60/65. At prevalence 0.5: 60/80 against 5/20."""
    assert adjust_prevalence(60 / 65, 0.8, 0.5) == pytest.approx(0.75 / (0.75 + 0.25))
    assert adjust_prevalence([0.0, 0.8, 1.0], 0.8, 0.3) == pytest.approx([0.0, 0.3, 1.0])


inner = st.floats(0.01, 0.99)


@given(st.floats(0, 1), inner, inner, inner)
def test_prevalence_adjustments_compose(p, first, second, third):
    assert adjust_prevalence(adjust_prevalence(p, first, second), second, third) == pytest.approx(
        adjust_prevalence(p, first, third), abs=1e-9
    )
    assert adjust_prevalence(p, first, first) == pytest.approx(p, abs=1e-12)
