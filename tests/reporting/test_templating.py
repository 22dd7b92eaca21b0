"""Number formats of the pages."""

import jinja2
import pytest

from pneumoscope.reporting.templating import (
    environment,
    format_difference,
    format_duration,
    format_p,
    format_value,
)


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
def test_duration_has_the_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("p", "text"), [(0.00099, "< 0.001"), (0.001, "0.001"), (0.04951, "0.050"), (1.0, "1.000")])
def test_p_value_is_never_zero(p: float, text: str) -> None:
    assert format_p(p) == text


def test_values_have_a_true_minus_sign_and_differences_a_sign() -> None:
    assert format_value(-0.12349) == "\N{MINUS SIGN}0.123"
    assert format_value(0.9996) == "1.000"
    assert format_difference(0.0214) == "+0.021"
    assert format_difference(-0.0216) == "\N{MINUS SIGN}0.022"


def test_templates_escape_values_and_reject_undefined_names() -> None:
    assert environment().from_string("{{ name }}").render(name="<b>") == "&lt;b&gt;"
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ name }}").render()


def test_text_between_backticks_is_code_and_everything_is_escaped() -> None:
    text = environment().from_string("{{ text | code }}").render(text="<b> `a --by <i>` and ` alone")
    assert text == "&lt;b&gt; <code>a --by &lt;i&gt;</code> and ` alone"
