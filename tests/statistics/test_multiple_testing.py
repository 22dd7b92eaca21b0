"""Holm's correction, checked by hand and against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.multiple_testing import holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([]) == []
    assert holm([0.4, 0.9]) == [pytest.approx(0.8), pytest.approx(0.9)]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_keeps_the_order_and_never_lowers_p(p_values):
    corrected = holm(p_values)
    tests = [(p, q) for p, q in zip(p_values, corrected, strict=True) if p is not None]
    assert [q is None for q in corrected] == [p is None for p in p_values]
    assert all(p <= q <= min(1.0, len(tests) * p + 1e-12) for p, q in tests)
    ordered = [q for _, q in sorted(tests)]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_holm_rejects_p_values_outside_0_to_1(p):
    with pytest.raises(UndefinedMetricError, match=f"p value 2 of 2 is {p}"):
        holm([0.5, p])


def test_holm_against_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(6).tolist()
        order = np.argsort(p_values)
        running, expected = 0.0, [0.0] * 6
        for rank, place in enumerate(order):
            running = max(running, min(1.0, (6 - rank) * p_values[place]))
            expected[place] = running
        assert holm(p_values) == pytest.approx(expected)
