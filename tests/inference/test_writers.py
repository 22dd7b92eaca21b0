"""JSON and CSV of predictions, read back by the standard library's readers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator

import pytest

from pneumoscope.core.identity import IDENTITY_FIELDS, Identity
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction import Failure, ImageInfo, ModelInfo, Prediction, Uncertainty
from pneumoscope.core.results import SCHEMA
from pneumoscope.inference.writers import iter_csv, iter_json

MODEL = ModelInfo("gray", "0.1.0", "ab" * 32)
PREDICTED = Prediction(
    path='größer, "b"\n.png',
    decision="uncertain",
    probability=0.1 + 0.2,
    interval=Interval(0.1 + 0.2, 0.25, 0.5, method="venn-abers", n=7, level=None),
    threshold=0.4,
    operating_point="balanced",
    uncertainty=Uncertainty(0.2, 0.4, 0.95),
    image=ImageInfo(30, 20, "PNG"),
    model=MODEL,
)
FAILED = Prediction(
    path="gone\udcff.png",
    decision=None,
    operating_point="balanced",
    failure=Failure("unreadable_image", "no such file"),
    model=MODEL,
)
SENTENCE = "Trained on patients."
MESSAGE = (
    "The probability is in the uncertain range (20% to 40%), where the model would be wrong too often. Read the image without the"
    " prediction"
)


def test_json_is_one_document_with_every_field() -> None:
    data = json.loads("".join(iter_json(MODEL, [PREDICTED, FAILED], SENTENCE)))
    assert list(data) == ["schema", "model", "notice", "predictions"]
    assert (data["schema"], data["notice"]) == (SCHEMA, SENTENCE)
    assert data["model"] == {"name": "gray", "version": "0.1.0", "sha256": "ab" * 32, "site": "", "prevalence": None}
    predicted, failed = data["predictions"]
    assert predicted.pop("message") == MESSAGE
    assert predicted == json.loads(json.dumps(dataclasses.asdict(PREDICTED)))
    assert failed["decision"] is None
    assert (failed["failure"]["code"], failed["message"]) == ("unreadable_image", "no such file")


def test_json_without_predictions_is_a_complete_document() -> None:
    assert json.loads("".join(iter_json(MODEL, [], SENTENCE)))["predictions"] == []


def test_json_is_ascii_and_preserves_undecodable_file_names() -> None:
    text = "".join(iter_json(MODEL, [PREDICTED, FAILED], SENTENCE))
    assert text.isascii()
    assert [found["path"] for found in json.loads(text)["predictions"]] == [PREDICTED.path, FAILED.path]


def test_json_is_written_as_predictions_arrive() -> None:
    asked = []

    def predictions() -> Iterator[Prediction]:
        for number in range(3):
            asked.append(number)
            yield PREDICTED

    parts = iter_json(MODEL, predictions(), SENTENCE)
    next(parts)
    assert asked == []
    assert json.loads(next(parts).lstrip(","))["path"] == PREDICTED.path
    assert asked == [0]


def test_json_is_complete_before_a_failure_is_raised() -> None:
    def predictions() -> Iterator[Prediction]:
        yield PREDICTED
        raise MemoryError("no more")

    parts: list[str] = []
    with pytest.raises(MemoryError, match="no more"):
        parts.extend(iter_json(MODEL, predictions(), SENTENCE))
    assert [found["path"] for found in json.loads("".join(parts))["predictions"]] == [PREDICTED.path]


def test_csv_has_one_row_per_image() -> None:
    data = b"".join(iter_csv([PREDICTED, FAILED], SENTENCE, []))
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
    assert rows[0] == {
        "path": PREDICTED.path,
        "decision": "uncertain",
        "probability": "0.30000000000000004",
        "interval_low": "0.25",
        "interval_high": "0.5",
        "interval_method": "venn-abers",
        "interval_n": "7",
        "threshold": "0.4",
        "operating_point": "balanced",
        "rejection_code": "",
        "rejection_parameters": "",
        "uncertainty_low": "0.2",
        "uncertainty_high": "0.4",
        "uncertainty_coverage": "0.95",
        "failure_code": "",
        "failure_reason": "",
        "failure_parameters": "",
        "failure_message": "",
        "failure_hint": "",
        "age": "",
        "age_source": "",
        "warnings": "",
        **dict.fromkeys(IDENTITY_FIELDS, ""),
        "width": "30",
        "height": "20",
        "format": "PNG",
        "pixel_sha256": "",
        "image_brightness": "",
        "image_contrast": "",
        "image_sharpness": "",
        "image_border": "",
        "model_name": "gray",
        "model_version": "0.1.0",
        "model_sha256": "ab" * 32,
        "model_site": "",
        "model_prevalence": "",
        "message": MESSAGE,
        "notice": SENTENCE,
    }
    present = {"path", "operating_point", "failure_code", "failure_message", "message", "notice"}
    assert {name for name, cell in rows[1].items() if cell} == present | {"model_name", "model_version", "model_sha256"}


def test_csv_and_json_have_the_identity() -> None:
    """A name that a spreadsheet would run as a formula is escaped."""
    identity = Identity(patient_id="-1", patient_name="=Doe^Jane", accession_number="A 7")
    prediction = dataclasses.replace(PREDICTED, identity=identity)
    (row,) = csv.DictReader(io.StringIO(b"".join(iter_csv([prediction], SENTENCE, [])).decode()))
    assert (row["patient_id"], row["patient_name"], row["accession_number"]) == ("'-1", "'=Doe^Jane", "A 7")
    (document,) = json.loads("".join(iter_json(MODEL, [prediction], SENTENCE)))["predictions"]
    assert document["identity"] == dataclasses.asdict(identity)


def test_csv_without_predictions_has_a_header() -> None:
    (header,) = csv.reader(io.StringIO(b"".join(iter_csv([], SENTENCE, [])).decode()))
    assert header[:3] == ["path", "decision", "probability"]


def test_csv_preserves_undecodable_file_names() -> None:
    assert b"\ngone\xff.png," in b"".join(iter_csv([FAILED], SENTENCE, [])).replace(b"\r\n", b"\n")


def test_csv_is_complete_up_to_a_failure_and_the_failure_is_reported() -> None:
    def predictions() -> Iterator[Prediction]:
        yield PREDICTED
        raise MemoryError("no more")

    failed: list[Exception] = []
    rows = list(csv.DictReader(io.StringIO(b"".join(iter_csv(predictions(), SENTENCE, failed)).decode())))
    assert [row["path"] for row in rows] == [PREDICTED.path]
    assert [str(error) for error in failed] == ["no more"]


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@a.png"])
def test_file_names_are_escaped_as_spreadsheet_formulas(name: str) -> None:
    (row,) = csv.DictReader(
        io.StringIO(b"".join(iter_csv([dataclasses.replace(PREDICTED, path=name)], SENTENCE, [])).decode())
    )
    assert row["path"] == f"./{name}"
