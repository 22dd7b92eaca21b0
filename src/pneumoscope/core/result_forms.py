"""Forms of result records: JSON, files, table rows and data frames, and the printed names of methods."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.core.errors import MissingExtraError
from pneumoscope.core.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from pneumoscope.core.interval import Interval

__all__ = [
    "decimals_to_distinguish",
    "format_decimals",
    "format_limit",
    "interval_rows",
    "method_name",
    "rows_dataframe",
    "to_json",
    "with_minus_signs",
    "write_result",
]

# Names of methods in records, and as they are printed; the first that fits is replaced.
_PRINTED_NAMES = {
    "patient bootstrap, basic": "basic bootstrap by patient",
    "patient bootstrap": "percentile bootstrap by patient",
    "delong, mean of classes, by patient": "DeLong, mean of classes, clustered by patient",
    "delong by patient": "DeLong, clustered by patient (Obuchowski)",
    "delong": "DeLong",
    "mcnemar": "McNemar",
    "obuchowski-rockette": "Obuchowski-Rockette",
    "mercaldo": "Mercaldo",
    "mover-r": "MOVER-R",
    "mover": "MOVER",
    "nadeau-bengio": "Nadeau-Bengio",
    "newcombe": "Newcombe",
    "simel": "Simel",
    "wilson": "Wilson",
}
_MAX_DECIMALS = 6


def method_name(method: str) -> str:
    """Return the printed name of a method or test, such as "McNemar, exact" or "percentile bootstrap by patient"."""
    return re.sub("|".join(_PRINTED_NAMES), lambda match: _PRINTED_NAMES[match[0]], method)


def with_minus_signs(text: str) -> str:
    """Return text for people with true minus signs in front of its numbers, and no sign in front of 0.

    CSV and JSON have hyphens, which programs parse.
    """
    text = re.sub(r"(?<![\w.])[-+](?=0(?:\.0+)?(?![\w.]*\d))", "", text)
    return re.sub(r"(?<![\w.])-(?=[\d.])", "\N{MINUS SIGN}", text)


def format_limit(value: float, style: str) -> str:
    """Return the limit of an interval in a format; with more decimals if it would be printed as 0 and is not.

    Otherwise it would be unknown on which side of 0 the limit is. A limit that is printed as 0 with six decimals is one.

    Args:
        value: The limit.
        style: A format with decimals, such as ".3f", "+.3f" or ".1%".
    """
    text = f"{value:{style}}"
    match = re.fullmatch(r"(.*\.)(\d+)([f%])", style)
    if value == 0 or match is None or re.search("[1-9]", text):
        return text
    for decimals in range(int(match[2]) + 1, _MAX_DECIMALS + 1):
        longer = f"{value:{match[1]}{decimals}{match[3]}}"
        if re.search("[1-9]", longer):
            return longer
    return text


def decimals_to_distinguish(rows: Iterable[Sequence[float]], least: int = 3) -> int:
    """Return the smallest number of decimals, up to 6, with which all rows of numbers are printed differently.

    Args:
        rows: The rows, such as the lowest and highest probability of each bin; equal ones count once.
        least: The smallest number to return.
    """
    different = {*map(tuple, rows)}
    for decimals in range(least, _MAX_DECIMALS):
        if len({tuple(f"{number:.{decimals}f}" for number in row) for row in different}) == len(different):
            return decimals
    return _MAX_DECIMALS


def format_decimals(value: float, decimals: int, kind: Literal["f", "%"] = "f") -> str:
    """Return a number, or a fraction in percent, with fixed decimals; "< 0.001" for one above 0 that would be printed as 0.

    Args:
        value: The number.
        decimals: Number of decimals.
        kind: "f" for a number, "%" for percent.
    """
    text = f"{value:z.{decimals}{kind}}"  # without the sign of a negative number that is printed as 0
    if value > 0 and not text.strip("0.%"):
        return f"< {10.0 ** -(decimals + (2 if kind == '%' else 0)):.{decimals}{kind}}"
    return text


def to_json(result: object) -> str:
    """Return a record, or plain data, as one indented JSON document that ends with a line feed.

    Raises:
        ValueError: A number is not finite. Undefined numbers must be None with a reason.
    """
    data = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result  # type: ignore[arg-type]
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_result(folder: Path, name: str, result: object, markdown: str) -> None:
    """Write a record to NAME.json and its Markdown to NAME.md.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(folder / f"{name}.json", to_json(result))
    write_atomically(folder / f"{name}.md", markdown)


def interval_rows(intervals: Iterable[tuple[str, Interval]], **keys: Any) -> list[dict[str, Any]]:
    """Return one row per named interval: the keys, "metric", and the fields of the interval."""
    return [{**keys, "metric": name, **dataclasses.asdict(interval)} for name, interval in intervals]


def rows_dataframe(rows: Iterable[Any], task: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return rows as a pandas DataFrame.

    Args:
        rows: Mappings, or tuples if there are columns; an iterator is not begun without pandas.
        task: For the message of the error.
        columns: Names of the columns; those of the first mappings if None.
    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingExtraError("pandas", task, error.name or "") from error
    return pd.DataFrame(list(rows), columns=None if columns is None else list(columns))
