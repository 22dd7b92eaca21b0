"""Parse and check the numbers in a column of a predictions file; see `predictions_file`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pneumoscope.core.errors import DatasetError
from pneumoscope.core.messages import counted

__all__ = ["check_probabilities", "parse_numbers"]


def parse_numbers(values: Sequence[tuple[int, str]], column: str, name: str) -> list[float]:
    """Return the numbers in a column.

    Args:
        values: Line number and text of each value.
        column: Name of the column.
        name: Name of the file.

    Raises:
        DatasetError: A value is missing or not a finite number.
    """
    numbers: list[float] = []
    for _, text in values:
        try:
            numbers.append(float(text))
        except ValueError:
            numbers.append(math.nan)
        if "_" in text:  # Python reads 1_0 as a number
            numbers[-1] = math.nan
    bad = [i for i, number in enumerate(numbers) if not math.isfinite(number)]
    if bad:
        line, text = values[bad[0]]
        what = f"{text!r} is not a finite number" if text else "there is no value"
        if len(bad) == len(values) and re.match(r"[^\W\d_]", text):
            raise DatasetError(
                f"{name}: the column {column!r} holds labels or other text, such as {text!r}, and no numbers",
                hint="Name the column with numbers with --probability-column or --logit-column",
            )
        decimal = "Use a point in decimal numbers. " if re.fullmatch(r"-?\d+,\d+", text) else ""
        raise DatasetError(
            f"{name}, line {line}: {what} in the column {column!r} ({len(bad)} of {counted(len(values), 'row')})",
            hint=f"{decimal}Images without a prediction are never skipped; give --data without them, or predict them",
        )
    return numbers


def check_probabilities(numbers: Sequence[float], values: Sequence[tuple[int, str]], column: str, name: str) -> None:
    """Raise unless all numbers are probabilities.

    Args:
        numbers: Numbers to check.
        values, column, name: See `parse_numbers`.

    Raises:
        DatasetError: Contains the first number outside 0 to 1.
    """
    bad = [i for i, number in enumerate(numbers) if not 0 <= number <= 1]
    if not bad:
        return
    line, text = values[bad[0]]
    if min(numbers) >= 0 and max(numbers) <= 100:
        hint = "Divide percentages by 100"
    else:
        hint = f"If these are logits, give --logit-column {column!r}"
    raise DatasetError(
        f"{name}, line {line}: {text} in the column {column!r} is not a probability, 0 to 1 ({len(bad)} of"
        f" {counted(len(values), 'row')})",
        hint=hint,
    )
