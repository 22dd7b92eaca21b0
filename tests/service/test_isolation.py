"""A hostile image costs the service only that image."""

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from tests.service.conftest import images, png, problem

from pneumoscope.cli.serve import command
from pneumoscope.core.errors import DecodeCrashedError, DecodeMemoryError, DecodeTimeoutError, UsageError
from pneumoscope.imaging.sandbox.pool import DecodePool, Limits
from pneumoscope.inference.model import Model
from pneumoscope.inference.session import BundleSession
from pneumoscope.service.app import create_app
from pneumoscope.service.storage.repository import PredictionRepository

pytestmark = pytest.mark.slow  # each image runs into a limit of time or memory

LIMITS = Limits(memory=2**30, cpu_seconds=20, wall_seconds=5)


@pytest.fixture
def pool():
    with DecodePool(2, limits=LIMITS, preload=["tests.imaging.hostile_codec"]) as made:
        yield made


@pytest.fixture
def isolated(bundle, pool):
    app = create_app(Model(BundleSession.load(bundle), pool=pool), PredictionRepository(None))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as opened:
        yield opened


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("segfault", "the decoder crashed (SIGSEGV)"),
        ("loop", "decoding took more than 5 s"),
        ("8GB", "decoding takes more than 1 GiB of memory"),
    ],
)
def test_image_that_crashes_its_decoder_is_unreadable_and_the_service_continues(isolated, action, says):
    answer = isolated.post("/v1/predictions", files=images(png(90), b"BM" + bytes(8) + action.encode(), png(180)))
    first, bad, last = answer.json()["predictions"]
    assert answer.status_code == 201
    assert first["decision"]
    assert last["decision"]
    assert (bad["id"], bad["decision"]) == (None, None)
    assert bad["failure"]["message"].startswith(f"the file cannot be read: {says}")
    assert "The file is damaged" in bad["failure"]["hint"]
    assert isolated.post("/v1/predictions", files=images(b"BM" + bytes(8) + action.encode())).status_code == 422


@pytest.mark.parametrize(
    "error", [DecodeCrashedError("", "crashed"), DecodeMemoryError("", "memory"), DecodeTimeoutError("", "time")]
)
def test_stored_image_that_crashes_its_decoder_is_a_problem_in_every_rendering(isolated, pool, monkeypatch, error):
    (made,) = isolated.post("/v1/predictions", files=images(png(180))).json()["predictions"]

    def fail(*_, **__):
        raise error

    for method in ("decode", "decode_values", "preprocess"):
        monkeypatch.setattr(pool, method, fail)
    paths = isolated.get("/openapi.json").json()["paths"]
    for picture in ("image.png", "pixels", "thumbnail.png", "heatmap.png", "heatmap-layer.png"):
        document = problem(isolated.get(f"/v1/predictions/{made['id']}/{picture}"), 422, error.code)
        assert document["detail"] == f"the file cannot be read: {error.detail}"
        assert "422" in paths[f"/v1/predictions/{{id}}/{picture}"]["get"]["responses"]


def test_rendered_images_are_decoded_in_a_worker(isolated, pool, monkeypatch):
    monkeypatch.setattr(
        "pneumoscope.inference.image_loader.decode", lambda *_, **__: pytest.fail("decoded in the service")
    )
    (made,) = isolated.post("/v1/predictions", files=images(png(180))).json()["predictions"]
    for picture in ("image.png", "thumbnail.png", "heatmap.png", "heatmap-layer.png"):
        found = isolated.get(f"/v1/predictions/{made['id']}/{picture}")
        assert (found.status_code, found.headers["Content-Type"]) == (200, "image/png"), picture
    assert isolated.get(f"/v1/predictions/{made['id']}/pixels").status_code == 200


def test_serve_decodes_images_in_workers(monkeypatch):
    def load(*_, **options):
        assert options["isolated"] is True
        raise UsageError("loaded an isolated model")

    monkeypatch.setattr("pneumoscope.inference.model.load_model", load)
    with pytest.raises(UsageError, match="loaded an isolated model"):
        CliRunner().invoke(command, ["--ephemeral", "--port", "0"], catch_exceptions=False)
