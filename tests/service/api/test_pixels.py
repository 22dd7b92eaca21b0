"""`GET /v1/predictions/{id}/pixels`: the values of a stored image, against `image.png` and second opinions."""

import io
import json
import sqlite3
from contextlib import closing
from datetime import timedelta

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut
from tests.imaging.conformance import NO_WINDOW, REFERENCE, dataset, deep, lut, written
from tests.service.conftest import png, post, problem

from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention

HEADER = "X-Pixel-Description"


def pixels(client, id, **headers):
    """Return numbers, gray levels and description of an image, after a check that the gray levels are those of `image.png`."""
    answer = client.get(f"/v1/predictions/{id}/pixels", headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/octet-stream")
    description = json.loads(answer.headers[HEADER])
    shape = description["rows"], description["columns"]
    size = 2 * shape[0] * shape[1]
    numbers = np.frombuffer(answer.content[:size], "<u2").reshape(shape)
    gray_levels = np.frombuffer(answer.content[size:], np.uint8)
    image = client.get(f"/v1/predictions/{id}/image.png").content
    assert np.array_equal(gray_levels[numbers], np.asarray(Image.open(io.BytesIO(image))))
    return numbers, gray_levels, description


def saved(levels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


FILES = {
    "12 bits": lambda: written(dataset()),
    "signed": lambda: written(dataset(deep().astype(np.int16) - 2048, **NO_WINDOW)),
    "MONOCHROME1": lambda: written(dataset(4095 - deep(), PhotometricInterpretation="MONOCHROME1")),
    "VOI LUT": lambda: written(dataset(VOILUTSequence=lut(np.arange(4096, dtype=np.uint16)), **NO_WINDOW)),
    "rescaled": lambda: written(
        dataset(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=3995, WindowWidth=8192, PixelSpacing=[0.1, 0.2])
    ),
    "8 bits": lambda: written(dataset(REFERENCE, 8)),
    "PNG of 8 bits": lambda: saved(REFERENCE),
    "PNG of 16 bits": lambda: saved(deep(16)),
    "TIFF of 16 bits": lambda: saved(deep(12), "TIFF"),
    "JPEG": lambda: saved(REFERENCE, "JPEG"),
}


@pytest.mark.parametrize("kind", FILES)
def test_values_have_the_gray_levels_of_the_image(client, kind):
    data = FILES[kind]()
    (found,) = post(client, data)
    numbers, _, description = pixels(client, found["id"])
    values = description["slope"] * numbers.astype(float) + description["intercept"]
    if data[128:132] == b"DICM":
        file = dcmread(io.BytesIO(data))
        expected = apply_modality_lut(file.pixel_array, file)
    else:
        expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.allclose(values, expected)
    assert (description["smallest"], description["largest"]) == (expected.min(), expected.max())
    assert (description["default_window"] is None) == (kind == "VOI LUT")
    assert description["white_is_zero"] == (kind == "MONOCHROME1")
    spacing = {"row": 0.1, "column": 0.2, "kind": "unstated"} if kind == "rescaled" else None
    assert description["spacing"] == spacing


def test_description_is_ascii_and_short(client):
    file = dataset(
        SpecificCharacterSet="ISO_IR 192", WindowCenter=[2048] * 9, WindowWidth=[4096] * 9,
        WindowCenterWidthExplanation=["預設" * 32] * 9,
    )  # fmt: skip
    (found,) = post(client, written(file))
    answer = client.get(f"/v1/predictions/{found['id']}/pixels")
    windows = json.loads(answer.headers[HEADER])["windows"]
    expected = {"center": 2048, "width": 4096, "function": "LINEAR", "explanation": "預設" * 20}
    assert windows == [expected] * 8
    assert sum(len(name) + len(value) + 4 for name, value in answer.headers.items()) < 4096  # a buffer of nginx


def test_values_are_compressed_on_request(client):
    (found,) = post(client, written(dataset()))
    plain, packed = (
        client.get(f"/v1/predictions/{found['id']}/pixels", headers={"Accept-Encoding": encoding})
        for encoding in ("identity", "gzip, br")
    )
    assert plain.content == packed.content
    assert ("Content-Encoding" in plain.headers, packed.headers["Content-Encoding"]) == (False, "gzip")
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"])
    assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"


def test_values_are_recorded_as_a_view(client, app):
    (found,) = post(client, saved(REFERENCE))
    client.get(f"/v1/predictions/{found['id']}/pixels")
    rows = read_rows(app.state.service.repository.engine)
    assert [(row.event, row.prediction_id) for row in rows][-1] == ("viewed", found["id"])


def test_values_of_an_unknown_prediction_are_not_found(client):
    problem(client.get(f"/v1/predictions/{'0' * 32}/pixels"), 404, "unknown_name")
    problem(client.get("/v1/predictions/none/pixels"), 422, "usage")


def test_values_of_a_removed_image_are_gone(model, tmp_path):
    repository = PredictionRepository(tmp_path)
    with TestClient(create_app(model, repository), base_url="http://127.0.0.1:8000") as client:
        (found,) = post(client, saved(REFERENCE))
        with closing(sqlite3.connect(tmp_path / "pneumoscope.sqlite")) as database, database:
            database.execute("UPDATE predictions SET created = '2020-01-01T00:00:00.000000Z'")
        Retention(repository).expire_images(timedelta(days=1))
        problem(client.get(f"/v1/predictions/{found['id']}/pixels"), 410, "gone")


@pytest.mark.parametrize("content", [b"", saved(REFERENCE)[:-40], b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(20)])
def test_stored_file_that_is_damaged_is_a_problem(client, app, monkeypatch, content):
    (found,) = post(client, saved(REFERENCE))
    monkeypatch.setattr(app.state.service.repository, "image", lambda _: content)
    problem(client.get(f"/v1/predictions/{found['id']}/pixels"), 422, "unreadable_image")


@pytest.mark.parametrize("name", ["pixels", "image.png", "thumbnail.png", "heatmap-layer.png"])
def test_message_on_a_damaged_file_is_in_the_language_of_the_request(client, app, monkeypatch, name):
    (found,) = post(client, png(180))
    monkeypatch.setattr(app.state.service.repository, "image", lambda _: b"")
    for language, message in (
        ("zh-Hant", "檔案是空的（0 位元組）。"),
        ("en-GB", "the file cannot be read: the file is empty (0 bytes)"),
    ):
        answer = client.get(f"/v1/predictions/{found['id']}/{name}", headers={"Accept-Language": language})
        assert problem(answer, 422, "unreadable_image")["message"] == message


def test_image_that_is_too_large_is_a_problem(client, app, monkeypatch):
    (found,) = post(client, saved(REFERENCE))
    huge = written(dataset(Rows=30_000, Columns=30_000))
    monkeypatch.setattr(app.state.service.repository, "image", lambda _: huge)
    document = problem(client.get(f"/v1/predictions/{found['id']}/pixels"), 422, "unreadable_image")
    assert "more than 75,000,000 pixels" in document["detail"]


def test_pseudonymous_image_has_values_without_spacing(model):
    app = create_app(model, PredictionRepository(None), Settings(pseudonymizer=Pseudonymizer(b"k" * 32)))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        (found,) = post(client, written(dataset(PixelSpacing=[0.1, 0.2])))
        _, _, description = pixels(client, found["id"])
    assert (description["spacing"], description["windows"], description["bits"]) == (None, [], 8)
