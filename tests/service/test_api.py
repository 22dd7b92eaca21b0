"""The API as a program meets it: images in, predictions out, everything else a problem document; in process, with real images."""

import errno
import io
import json
import logging
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.service.conftest import TOKEN, images, png, post, problem

from pneumoscope.core.i18n import NOTICE
from pneumoscope.imaging.decode import decode
from pneumoscope.service.api.exception_handlers import PROBLEM_MEDIA_TYPE
from pneumoscope.service.app import Settings, create_app
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.storage.repository import PredictionRepository

CANARY = "DOE^JANE"


def test_images_of_a_form_are_judged_in_their_order_as_predict_judges_them(client, model):
    contents = [png(180), png(90), png(130)]
    answers = post(client, *contents)
    for place, (answer, content) in enumerate(zip(answers, contents, strict=True)):
        expected = json.loads(json.dumps(_said(model.predict(content, name=f"image {place}.png"))))
        assert {name: answer[name] for name in expected} == expected
        assert client.get(f"/v1/predictions/{answer['id']}").json() == answer
    assert answers[0]["decision"] != answers[1]["decision"]


def _said(prediction):
    import dataclasses

    return dataclasses.asdict(prediction)


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/dicom"])
def test_one_image_may_be_the_body(client, kind):
    answer = client.post("/v1/predictions?name=a.png", content=png(), headers={"Content-Type": kind})
    (found,) = answer.json()["predictions"]
    assert (answer.status_code, found["path"], found["image"]["format"]) == (201, "a.png", "PNG")


def test_the_same_image_has_the_same_id_and_one_record(client):
    first = post(client, png(), png(), png(90))
    again = post(client, png())
    assert first[0] == first[1]
    assert again == [{**first[0], "path": "image 0.png"}]
    page = client.get("/v1/predictions").json()
    assert (page["total"], page["next"], page["notice"]) == (2, "", NOTICE)


def test_a_image_that_cannot_be_read_leaves_the_others_done(client):
    good, bad, empty = post(client, png(), b"no image", b"")
    assert good["id"]
    for each in (bad, empty):
        assert (each["id"], each["decision"], each["probability"]) == (None, None, None)
        assert each["error"]
    assert client.get("/v1/predictions").json()["total"] == 1


def test_where_no_image_can_be_read_it_is_a_problem(client):
    found = problem(client.post("/v1/predictions", files=images(b"no image")), 422, "unreadable_image")
    assert "not an image" in found["detail"]
    assert (
        "none of 2 images"
        in problem(client.post("/v1/predictions", files=images(b"a", b"b")), 422, "unreadable_image")["detail"]
    )


def test_pictures_of_a_image(client):
    (found,) = post(client, png(150, 70))
    image = client.get(f"/v1/predictions/{found['id']}/image.png")
    assert image.headers["Content-Type"] == "image/png"
    picture = Image.open(io.BytesIO(image.content))
    assert (picture.mode, picture.size) == ("L", (70, 70))
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(png(150, 70)))))
    heatmap = client.get(f"/v1/predictions/{found['id']}/heatmap.png")
    assert Image.open(io.BytesIO(heatmap.content)).format == "PNG"
    layer = client.get(f"/v1/predictions/{found['id']}/heatmap-layer.png")
    assert Image.open(io.BytesIO(layer.content)).size == (70, 70)
    # The small network's places are shares of gain x mean grey: the lighter half's is 0.05 x 158 / 16.
    assert float(layer.headers["X-Heatmap-Scale"]) == pytest.approx(0.05 * 158 / 16, rel=0.02)


def test_a_thumbnail_is_the_image_small(client):
    wide = np.tile(np.repeat(np.array([100, 120], np.uint8), 200), (200, 1))
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    (found,) = post(client, file.getvalue())
    answer = client.get(f"/v1/predictions/{found['id']}/thumbnail.png")
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (80, 160)
    assert (picture[:, :79] == 100).all()
    assert (picture[:, 81:] == 120).all()


def test_a_rejected_image_has_no_heatmap(client):
    (found,) = post(client, png(30))
    assert (found["decision"], found["probability"]) == ("rejected", None)
    for picture in ("heatmap.png", "heatmap-layer.png"):
        said = problem(client.get(f"/v1/predictions/{found['id']}/{picture}"), 404, "unknown_name")
        assert "rejected" in said["hint"]


def test_what_a_person_reads_is_kept_beside_it(client):
    (found,) = post(client, png())
    path = f"/v1/predictions/{found['id']}"
    answer = client.put(f"{path}/review", json={"agrees": False, "note": "a shadow"}).json()
    review = answer["review"]
    assert (review["agrees"], review["note"], review["reviewer"]) == (False, "a shadow", "local")
    assert client.get(path).json() == answer
    assert client.get("/v1/predictions?reviewed=true").json()["total"] == 1
    assert client.get("/v1/predictions?reviewed=false").json()["total"] == 0


def test_what_is_deleted_is_gone(client):
    (found,) = post(client, png())
    path = f"/v1/predictions/{found['id']}"
    assert client.delete(path).status_code == 204
    for answer in (
        client.get(path),
        client.delete(path),
        client.get(f"{path}/image.png"),
        client.put(f"{path}/review", json={"agrees": True}),
    ):
        problem(answer, 404, "unknown_name")


def test_pages_follow_one_another(client):
    ids = [found["id"] for found in post(client, png(100), png(120), png(140))]
    page = client.get("/v1/predictions?limit=2&order=oldest").json()
    rest = client.get(f"/v1/predictions?limit=2&order=oldest&after={page['next']}").json()
    assert [each["id"] for each in page["predictions"] + rest["predictions"]] == ids
    highest = client.get("/v1/predictions?order=highest").json()["predictions"]
    assert [each["id"] for each in highest] == ids[::-1]


def test_the_card_is_the_bundles(client, model):
    assert client.get("/v1/model").json()["onnx_sha256"] == model.facts.sha256


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "error"),
    [
        ("GET", "/nowhere", {}, 404, "unknown_name"),
        ("PATCH", "/v1/predictions", {}, 405, "usage"),
        ("GET", f"/v1/predictions/{'ab' * 16}", {}, 404, "unknown_name"),
        ("GET", "/v1/predictions/..%2f..%2fetc", {}, 404, "unknown_name"),
        ("GET", "/v1/predictions/xyz", {}, 422, "usage"),
        ("GET", "/v1/predictions?limit=0", {}, 422, "usage"),
        ("GET", "/v1/predictions?since=yesterday", {}, 422, "usage"),
        ("GET", f"/v1/predictions?after={'ab' * 16}", {}, 422, "usage"),
        ("POST", "/v1/predictions", {"json": {}}, 415, "usage"),
        ("POST", "/v1/predictions", {}, 415, "usage"),
        ("POST", "/v1/predictions", {"content": b"", "headers": {"Content-Type": "image/png"}}, 422, "usage"),
        (
            "POST",
            "/v1/predictions",
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            422,
            "usage",
        ),
        ("POST", "/v1/predictions", {"data": {"images": "text"}, "files": [("other", b"x")]}, 422, "usage"),
        ("POST", "/v1/predictions", {"files": images(*[b"x"] * 4)}, 413, "too_large"),
        ("POST", "/v1/predictions", {"files": images(b"x" * 200_000)}, 413, "too_large"),
        ("GET", "/v1/predictions", {"headers": {"Host": "evil.example"}}, 403, "authentication"),
        (
            "POST",
            "/v1/predictions",
            {"files": images(b"x"), "headers": {"Origin": "http://evil.example"}},
            403,
            "authentication",
        ),
    ],
)
def test_what_cannot_be_done_is_a_problem_document(client, method, path, options, status, error):
    problem(client.request(method, path, **options), status, error)


def test_a_body_that_does_not_say_how_long_it_is_ends_at_the_limit(client):
    parts = (b"x" * 10_000 for _ in range(30))
    answer = client.post("/v1/predictions", content=parts, headers={"Content-Type": "image/png"})
    problem(answer, 413, "too_large")


@pytest.mark.parametrize(
    ("name", "said"),
    [(b"\\ud800", "half of a character"), (b"a\\x00", "U\\+0000")],
)
def test_a_name_that_no_database_could_keep_is_refused(client, name, said):
    """In a form that says that it is written in Python's escapes."""
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="' + name + b'"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    answer = client.post("/v1/predictions", content=head + png() + b"\r\n--x--\r\n", headers=kind)
    assert re.search(said, problem(answer, 422, "usage")["detail"])


@pytest.mark.parametrize("path", ["/v1/predictions", "/sign-in"])
@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "idna", "nowhere"])
def test_a_form_in_an_encoding_that_is_none_is_no_fault_of_ours(model, path, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n\\ud800\xff\r\n--x--\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}", "Authorization": f"Bearer {TOKEN}"}
    with TestClient(
        create_app(model, PredictionRepository(None), Authenticator({"me": TOKEN}), Settings(loopback=False))
    ) as client:
        assert client.post(path, content=body, headers=kind).status_code in (401, 422)


def test_a_temporary_folder_that_takes_no_image_is_told(client, monkeypatch, app):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    app.user_middleware.clear()
    app.middleware_stack = None  # without the limit on bytes
    answer = client.post("/v1/predictions", files=images(bytes(2 * 2**20)))
    found = problem(answer, 503, "storage")
    assert "temporary folder: No such file or directory" in found["detail"]
    assert "TMPDIR" in found["hint"]


def test_every_answer_forbids_what_a_browser_might_do_with_it(client):
    (found,) = post(client, png())
    for path in ("/healthz", "/v1/predictions", "/nowhere", f"/v1/predictions/{found['id']}/image.png"):
        for method in ("GET", "OPTIONS"):
            headers = client.request(method, path, headers={"Origin": "https://elsewhere.example"}).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert not [name for name in headers if name.startswith("access-control-")]  # no other site may read it


def test_no_library_is_asked_to_report_requests(client, monkeypatch):
    """FastAPI would, to whatever collector the environment names; with the name of an image in its address."""

    def fail():
        raise AssertionError("it was asked")

    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", fail)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", fail)
    answer = client.post("/v1/predictions?name=DOE", content=png(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 201


def test_two_images_are_drawn_at_once_and_others_wait(app, client, monkeypatch):
    ids = [each["id"] for each in post(client, png(90), png(120), png(150))]
    two, go, began = threading.Barrier(3), threading.Event(), []

    def held(*arguments, **options):
        began.append(1)
        if len(began) <= 2:
            two.wait(10)
        assert go.wait(10)
        return decode(*arguments, **options)

    monkeypatch.setattr("pneumoscope.service.api.routes.decode", held)
    with ThreadPoolExecutor(6) as pool:
        pictures = ("image.png", "thumbnail.png")
        asked = [pool.submit(client.get, f"/v1/predictions/{key}/{name}") for key in ids for name in pictures]
        two.wait(10)
        time.sleep(0.3)
        assert len(began) == 2
        go.set()
        assert [each.result(10).status_code for each in asked] == 6 * [200]
    assert len(began) == 6


def test_who_has_no_token_learns_nothing_but_that_it_lives(model):
    app = create_app(model, PredictionRepository(None), Authenticator({"me": TOKEN}), Settings(loopback=False))
    with TestClient(app) as client:
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}x"},
        ):
            answer = client.post("/v1/predictions", files=images(png()), headers=headers)
            problem(answer, 401, "authentication")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            for path in ("/v1/predictions", f"/v1/predictions/{'ab' * 16}/image.png", "/v1/model"):
                problem(client.get(path, headers=headers), 401, "authentication")
        assert client.get("/healthz").json() == {"status": "ok"}
        answer = client.post("/v1/predictions", files=images(png()), headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 201


def test_ready_means_that_images_are_judged_and_kept(client, app, monkeypatch):
    assert client.get("/readyz").json() == {"status": "ok"}
    monkeypatch.setattr(
        "pneumoscope.inference.session.self_test_image", lambda size: np.zeros((1, size, size), np.uint8)
    )
    assert client.get("/readyz").status_code == 200  # it was looked at this second
    monkeypatch.setattr("pneumoscope.service.predictions._CHECK_SECONDS", 0)
    time.sleep(1)
    answer = client.get("/readyz")
    problem(answer, 503, "bundle")
    assert answer.headers["Retry-After"]


def test_metrics_count_images_and_requests(client):
    post(client, png(), png(30), b"no image")
    text = client.get("/metrics").text
    assert 'pneumoscope_images_total{decision="rejected"} 1.0' in text
    assert 'pneumoscope_images_total{decision="unreadable"} 1.0' in text
    assert 'pneumoscope_requests_total{method="POST",path="/v1/predictions",status="201"} 1.0' in text
    assert "pneumoscope_images_waiting 0.0" in text


def test_a_patients_name_is_in_no_log_line_no_metric_and_no_error(client, caplog, app):
    """It is in the record and nowhere else; what each refused request leaves in the log is in test_watching.py."""
    caplog.set_level(logging.INFO, "pneumoscope.service")
    named = [("images", (f"{CANARY}.png", b"no image"))]
    said = client.post("/v1/predictions", files=named).text
    said += client.post("/v1/predictions", files=[("images", (CANARY, png()))]).headers.__repr__()
    (found,) = client.get("/v1/predictions").json()["predictions"]
    assert found["path"] == CANARY
    said += client.put(f"/v1/predictions/{found['id']}/review", json={"agrees": CANARY, "note": CANARY}).text
    said += client.get(f"/v1/predictions/{CANARY}").text
    said += client.get(f"/v1/predictions?since={CANARY}&until={CANARY}&after={CANARY}&limit={CANARY}").text
    client.get(f"/v1/predictions?{CANARY}={CANARY}")  # the answer says which parameter does not exist
    client.get(f"/{CANARY}", headers={"Authorization": CANARY, "Origin": CANARY, "User-Agent": CANARY})
    client.request(CANARY, "/v1/predictions")
    assert caplog.text.count("\n") == 7
    said += client.get("/metrics").text + caplog.text
    assert CANARY not in said.replace(f"/v1/predictions/{CANARY}", "")


def test_the_trail_tells_who_did_what(model):
    repository = PredictionRepository(None)
    with TestClient(create_app(model, repository, Authenticator({"me": TOKEN}), Settings(loopback=False))) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        (found,) = post(client, png())
        path = f"/v1/predictions/{found['id']}"
        assert client.put(f"{path}/review", json={"agrees": True}).json()["review"]["reviewer"] == "me"
        client.delete(path)
        assert verify(repository.engine).rows == 3
        with repository.engine.connect() as connection:
            rows = connection.exec_driver_sql('SELECT "user", event FROM audit_log ORDER BY number').all()
        assert [tuple(row) for row in rows] == [("me", "predicted"), ("me", "reviewed"), ("me", "deleted")]


def test_every_address_tells_the_methods_that_it_takes(client):
    for method, path, taken in [
        ("PUT", "/v1/predictions", "GET, HEAD, POST"),
        ("PUT", "/v1/predictions/" + "ab" * 16, "DELETE, GET, HEAD"),
        ("GET", f"/v1/predictions/{'ab' * 16}/review", "PUT"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/sign-in", "GET, HEAD, POST"),
    ]:
        answer = client.request(method, path)
        problem(answer, 405, "usage")
        assert answer.headers["Allow"] == taken


def test_what_may_be_had_may_be_asked_about_without_its_body(client):
    (found,) = post(client, png())
    for path in (
        "/",
        "/healthz",
        "/metrics",
        "/v1/model",
        f"/v1/predictions/{found['id']}/image.png",
        "/static/style.css",
    ):
        got, asked = client.get(path), client.head(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["Content-Type"] == got.headers["Content-Type"]
    assert client.head("/v1/predictions/" + "ab" * 16).status_code == 404
    assert 'method="HEAD",path="/healthz",status="200"} 1.0' in client.get("/metrics").text


def test_errors_and_tokens_are_described(model, app):
    asks = create_app(model, PredictionRepository(None), Authenticator({"me": TOKEN})).openapi()
    for path, operations in asks["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == path.startswith("/v1/")
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    (content,) = answer["content"].items()
                    assert content[0] == PROBLEM_MEDIA_TYPE
                    assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
                    assert content[1]["example"]["status"] == int(status)
    assert set(asks["components"]["schemas"]["Problem"]["properties"]) >= {"type", "title", "status", "detail"}
    assert "security" not in app.openapi()["paths"]["/v1/model"]["get"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "in the system")]
)
def test_too_many_open_files_are_no_fault_but_a_reason_to_wait(client, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pneumoscope.service.storage.repository.PredictionRepository.get", fail)
    answer = client.get("/v1/predictions/" + "ab" * 16)
    problem(answer, 503, "busy")
    assert answer.headers["Retry-After"]


def test_a_reading_is_yes_or_no_and_nothing_like_it(client):
    (found,) = post(client, png())
    for like in ("yes", 1, 0.0, "off", None):
        problem(client.put(f"/v1/predictions/{found['id']}/review", json={"agrees": like}), 422, "usage")


def test_the_description_has_every_path(app):
    assert set(app.openapi()["paths"]) == {
        "/healthz", "/readyz", "/metrics", "/v1/predictions", "/v1/predictions/{id}", "/v1/predictions/{id}/image.png",
        "/v1/predictions/{id}/heatmap.png", "/v1/predictions/{id}/heatmap-layer.png",
        "/v1/predictions/{id}/thumbnail.png", "/v1/predictions/{id}/review", "/v1/model",
    }  # fmt: skip


def test_every_answer_is_as_the_description_says(model):
    """Schemathesis asks of each path all that the description allows, and much that it does not."""
    app = create_app(model, PredictionRepository(None), Authenticator({"me": TOKEN}), Settings(loopback=False))
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    asked = Counter()
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = found.ok()
        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        for mode in modes if operation.path.startswith("/v1/predictions") else modes[:1]:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
            )
            def ask(case):
                # No description says which bytes are an image, or which ids exist.
                case.call_and_validate(headers=bearer, excluded_checks=[positive_data_acceptance])
                asked[case.operation.label] += 1

            ask()
    assert len(asked) == 13
    assert asked.total() > 150
