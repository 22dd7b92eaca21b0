"""JSON and CSV of predictions, read back by the standard library's readers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator

import pytest

from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.prediction import ImageInfo, ModelInfo, Prediction
from pneumoscope.core.results import SCHEMA
from pneumoscope.inference.writers import COLUMNS, iter_csv, iter_json

MODEL = ModelInfo("grey", "0.1.0", "ab" * 32)
READ = Prediction(
    path='größer, "b"\n.png',
    decision="uncertain",
    probability=0.1 + 0.2,
    interval=(0.25, 0.5),
    interval_reason="",
    threshold=0.4,
    reason="between the two",
    image=ImageInfo(30, 20, "PNG"),
    model=MODEL,
)
FAILED = Prediction(
    "gone\udcff.png", None, None, None, "the image could not be read", None, "", None, MODEL, "no such file"
)


def test_json_is_one_document_with_every_field() -> None:
    data = json.loads("".join(iter_json(MODEL, [READ, FAILED])))
    assert list(data) == ["schema", "model", "notice", "predictions"]
    assert (data["schema"], data["notice"]) == (SCHEMA, NOTICE)
    assert data["model"] == {"name": "grey", "version": "0.1.0", "sha256": "ab" * 32}
    expected = [json.loads(json.dumps(dataclasses.asdict(prediction))) for prediction in (READ, FAILED)]
    assert data["predictions"] == expected
    assert data["predictions"][0]["image"] == {"width": 30, "height": 20, "format": "PNG"}
    assert data["predictions"][1]["decision"] is None
    assert data["predictions"][1]["error"] == "no such file"


def test_json_of_nothing_is_a_document_too() -> None:
    assert json.loads("".join(iter_json(MODEL, [])))["predictions"] == []


def test_json_is_ascii_and_names_that_are_no_text_come_back() -> None:
    text = "".join(iter_json(MODEL, [READ, FAILED]))
    assert text.isascii()
    assert [found["path"] for found in json.loads(text)["predictions"]] == [READ.path, FAILED.path]


def test_each_prediction_is_given_before_the_next_is_asked_for() -> None:
    asked = []

    def predictions() -> Iterator[Prediction]:
        for number in range(3):
            asked.append(number)
            yield READ

    parts = iter_json(MODEL, predictions())
    next(parts)
    assert asked == []
    assert json.loads(next(parts).lstrip(","))["path"] == READ.path
    assert asked == [0]


def test_json_is_closed_before_a_failure_gets_out() -> None:
    def predictions() -> Iterator[Prediction]:
        yield READ
        raise MemoryError("no more")

    parts: list[str] = []
    with pytest.raises(MemoryError, match="no more"):
        parts.extend(iter_json(MODEL, predictions()))
    assert [found["path"] for found in json.loads("".join(parts))["predictions"]] == [READ.path]


def test_csv_is_a_row_a_image() -> None:
    data = b"".join(iter_csv([READ, FAILED], []))
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0] == {
        "path": READ.path,
        "decision": "uncertain",
        "probability": "0.30000000000000004",
        "interval_low": "0.25",
        "interval_high": "0.5",
        "threshold": "0.4",
        "reason": "between the two",
        "width": "30",
        "height": "20",
        "format": "PNG",
        "error": "",
        "model": "grey",
        "version": "0.1.0",
        "sha256": "ab" * 32,
        "notice": NOTICE,
    }
    empty = {
        "decision",
        "probability",
        "interval_low",
        "interval_high",
        "threshold",
        "reason",
        "width",
        "height",
        "format",
    }
    assert {name for name, cell in rows[1].items() if not cell} == empty
    assert rows[1]["error"] == "no such file"


def test_csv_keeps_the_bytes_of_a_name() -> None:
    assert b"\ngone\xff.png," in b"".join(iter_csv([FAILED], [])).replace(b"\r\n", b"\n")


def test_csv_ends_where_the_images_fail_and_tells() -> None:
    def predictions() -> Iterator[Prediction]:
        yield READ
        raise MemoryError("no more")

    failed: list[Exception] = []
    rows = list(csv.DictReader(io.StringIO(b"".join(iter_csv(predictions(), failed)).decode())))
    assert [row["path"] for row in rows] == [READ.path]
    assert [str(error) for error in failed] == ["no more"]


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@a.png"])
def test_a_name_is_no_formula_in_a_spreadsheet(name: str) -> None:
    (row,) = csv.DictReader(io.StringIO(b"".join(iter_csv([dataclasses.replace(READ, path=name)], [])).decode()))
    assert row["path"] == f"./{name}"
