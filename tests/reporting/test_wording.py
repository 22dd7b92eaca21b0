"""Numbers as a reader sees them."""

import pytest

from pneumoscope.core.results import Interval
from pneumoscope.reporting import wording


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (21.37, "21.4 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.7, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(("p", "text"), [(0.00099, "< 0.001"), (0.001, "0.001"), (0.04951, "0.050"), (1.0, "1.000")])
def test_p_value(p: float, text: str) -> None:
    assert wording.p_value(p) == text


def test_minus_is_a_minus_sign_and_a_difference_has_its_sign() -> None:
    assert wording.plain(-0.12349) == "\N{MINUS SIGN}0.123"
    assert wording.plain(0.9996) == "1.000"
    assert wording.signed(0.0214) == "+0.021"
    assert wording.signed(-0.0216) == "\N{MINUS SIGN}0.022"


def test_people_keep_their_capitals() -> None:
    assert wording.method_name("mcnemar, exact") == "McNemar, exact"
    assert wording.method_name("delong by patient") == "DeLong by patient"
    assert wording.method_name("patient bootstrap") == "patient bootstrap"


def interval(method: str, *, level: float = 0.95, seed: int | None = None, low: float | None = 0.1) -> Interval:
    return Interval(0.5, low, None if low is None else 0.9, method, 10, level, seed, "" if low else "why")


def test_the_note_names_each_method_once_with_its_seed_and_what_it_is_for() -> None:
    note = wording.interval_note(
        [
            ("Accuracy", interval("wilson, design effect 1.31")),
            ("Accuracy", interval("wilson, design effect 1.02")),
            ("Sensitivity", interval("wilson")),
            ("F1", interval("patient bootstrap", seed=3)),
            ("MCC", interval("delong", low=None)),
        ]
    )
    assert note == (
        "95% intervals: Wilson, widened where patients repeat (Accuracy, Sensitivity); patient bootstrap, seed 3 (F1)."
    )


def test_one_method_needs_no_list_and_none_needs_no_note() -> None:
    assert wording.interval_note([("a", interval("newcombe, paired", level=0.9))]) == "90% intervals: Newcombe, paired."
    assert wording.interval_note([("a", interval("wilson", low=None))]) == ""
    both = wording.interval_note([("a", interval("wilson")), ("b", interval("wilson", level=0.99))])
    assert both == "95% and 99% intervals: Wilson."


def test_every_metric_shown_is_explained() -> None:
    assert set(wording.METRICS.values()) <= set(wording.GLOSSARY)
