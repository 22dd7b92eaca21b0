"""The HTTP API, in process: predictions, images, reviews, problem documents, authentication and its OpenAPI document."""

import dataclasses
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
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from tests.service.conftest import TOKEN, dicom, fetch, images, png, post, problem, repository_with_token

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import notice
from pneumoscope.inference.model import load_model
from pneumoscope.service.api.exception_handlers import PROBLEM_MEDIA_TYPE
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.auth.throttle import SignInThrottle
from pneumoscope.service.predictions import Readiness
from pneumoscope.service.request_limits import BodyLimitMiddleware
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

CANARY = "DOE^JANE"


def test_predictions_of_a_form_are_in_order_and_equal_those_of_predict(client, model):
    contents = [png(180), png(90), png(130)]
    answers = post(client, *contents)
    for place, (answer, content) in enumerate(zip(answers, contents, strict=True)):
        expected = json.loads(json.dumps(dataclasses.asdict(model.predict(content, name=f"image {place}.png"))))
        assert {name: answer[name] for name in expected} == expected
        assert fetch(client, answer["id"]) == answer
    assert answers[0]["decision"] != answers[1]["decision"]


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/dicom"])
def test_image_may_be_the_body(client, kind):
    answer = client.post("/v1/predictions?name=a.png", content=png(), headers={"Content-Type": kind})
    (found,) = answer.json()["predictions"]
    assert (answer.status_code, found["path"], found["image"]["format"]) == (201, "a.png", "PNG")


def test_same_image_has_the_same_id_and_is_stored_once(client):
    first = post(client, png(), png(), png(90))
    again = post(client, png())
    assert first[0] == first[1]
    assert again == [{**first[0], "path": "image 0.png"}]
    page = client.get("/v1/predictions").json()
    assert (page["total"], page["next"], page["notice"]) == (2, "", notice(Population()))


def test_review_with_an_entity_tag_does_not_replace_another_one(client):
    (found,) = post(client, png())
    path = f"/v1/predictions/{found['id']}"
    etag = client.get(path).headers["ETag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    first = client.put(f"{path}/review", json={"label": "pneumonia"}, headers={"If-Match": etag})
    assert (first.status_code, first.headers["ETag"] != etag) == (200, True)
    assert client.get(path).headers["ETag"] == first.headers["ETag"]
    stale = client.put(f"{path}/review", json={"label": "no_finding"}, headers={"If-Match": etag})
    assert problem(stale, 412, "conflict")["detail"] == "the prediction was changed in the meantime"
    assert client.get(path).json()["reviews"][0]["label"] == "pneumonia"
    for header in (f'"other", {first.headers["ETag"]}', "*"):
        again = client.put(f"{path}/review", json={"label": "no_finding"}, headers={"If-Match": header})
        assert again.status_code == 200
    assert client.put(f"{path}/review", json={"label": "no_finding"}, headers={"If-Match": ""}).status_code == 412


def test_unreadable_files_are_listed_and_can_be_removed(client):
    client.post("/v1/predictions", files=[("images", ("a.dcm", b"no image")), ("images", ("b.dcm", b"PK\x03\x04"))])
    client.post("/v1/predictions", content=b"no image", params={"name": "a.dcm"}, headers={"Content-Type": "image/png"})
    body = client.get("/v1/unreadable").json()
    assert (body["total"], {file["path"] for file in body["files"]}) == (2, {"a.dcm", "b.dcm"})
    assert body["files"][0]["failure"]["code"] == "unreadable_image"
    assert body["files"][0]["sender"] == "local"
    assert len(client.get("/v1/unreadable", params={"limit": 1}).json()["files"]) == 1
    id = body["files"][0]["id"]
    assert client.delete(f"/v1/unreadable/{id}").status_code == 204
    assert client.delete(f"/v1/unreadable/{id}").status_code == 404
    assert client.get("/v1/unreadable").json()["total"] == 1


def test_unreadable_image_does_not_affect_the_others(client):
    good, bad, empty = post(client, png(), b"no image", b"")
    assert good["id"]
    for each in (bad, empty):
        assert (each["id"], each["decision"], each["probability"]) == (None, None, None)
        assert each["message"].startswith("the file cannot be read: ")
    assert client.get("/v1/predictions").json()["total"] == 1


def test_request_without_a_readable_image_is_a_problem(client):
    found = problem(client.post("/v1/predictions", files=images(b"no image")), 422, "unreadable_image")
    assert found["detail"] == "the file cannot be read: not an image (8 bytes)"
    assert "JPEG, PNG" in found["hint"]
    assert (
        "none of 2 images"
        in problem(client.post("/v1/predictions", files=images(b"a", b"b")), 422, "unreadable_image")["detail"]
    )


def test_image_and_heatmap_are_rendered(client):
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
    # Each heatmap cell is gain x mean gray / 16; that of the brighter half is 0.05 x 158 / 16.
    assert float(layer.headers["X-Heatmap-Scale"]) == pytest.approx(0.05 * 158 / 16, rel=0.02)


def test_thumbnail_is_the_image_at_a_smaller_size(client):
    wide = np.tile(np.repeat(np.array([100, 120], np.uint8), 200), (200, 1))
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    (found,) = post(client, file.getvalue())
    answer = client.get(f"/v1/predictions/{found['id']}/thumbnail.png")
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (80, 160)
    assert (picture[:, :79] == 100).all()
    assert (picture[:, 81:] == 120).all()


def test_stored_image_that_cannot_be_decoded_is_a_problem_without_its_name(model, client, monkeypatch):
    (found,) = post(client, png())

    def fail(*_, **__):
        raise UnreadableImageError(CANARY, "truncated", hint="Copy it again")

    monkeypatch.setattr(model, "decode", fail)
    document = problem(client.get(f"/v1/predictions/{found['id']}/image.png"), 422, "unreadable_image")
    assert (document["detail"], document["hint"]) == ("the file cannot be read: truncated", "Copy it again")


def test_rejected_image_has_no_heatmap(client):
    (found,) = post(client, png(30))
    assert (found["decision"], found["probability"]) == ("rejected", None)
    for picture in ("heatmap.png", "heatmap-layer.png"):
        document = problem(client.get(f"/v1/predictions/{found['id']}/{picture}"), 404, "unknown_name")
        assert "rejected" in document["hint"]


def test_review_is_stored_with_the_prediction(client):
    (found,) = post(client, png())
    path = f"/v1/predictions/{found['id']}"
    answer = client.put(f"{path}/review", json={"label": "no_finding", "note": "a shadow"}).json()
    (review,) = answer["reviews"]
    assert (review["label"], review["note"], review["reviewer"]) == ("no_finding", "a shadow", "local")
    assert client.get(path).json() == answer
    assert client.get("/v1/predictions?reviewed=true").json()["total"] == 1
    assert client.get("/v1/predictions?reviewed=false").json()["total"] == 0
    withdrawn = client.delete(f"{path}/review")
    assert (withdrawn.json()["reviews"], withdrawn.headers["ETag"] == client.get(path).headers["ETag"]) == ([], True)
    problem(client.delete(f"{path}/review"), 404, "unknown_name")


def test_other_finding_needs_a_text_and_other_labels_have_none(client):
    (found,) = post(client, png())
    path = f"/v1/predictions/{found['id']}/review"
    stored = client.put(path, json={"label": "other_finding", "finding": " effusion "}).json()
    assert stored["reviews"][0]["finding"] == "effusion"
    for body in (
        {"label": "other_finding"}, {"label": "other_finding", "finding": " "}, {"label": "pneumonia", "finding": "effusion"},
    ):  # fmt: skip
        document = problem(client.put(path, json=body), 422, "usage")
        assert "finding is required with the label 'other_finding', and only with it" in document["detail"]


def test_deleted_prediction_is_not_found(client):
    (found,) = post(client, png())
    path = f"/v1/predictions/{found['id']}"
    assert client.delete(path).status_code == 204
    for answer in (
        client.get(path),
        client.delete(path),
        client.get(f"{path}/image.png"),
        client.put(f"{path}/review", json={"label": "pneumonia"}),
    ):
        problem(answer, 404, "unknown_name")


def test_pages_follow_each_other(client):
    ids = [found["id"] for found in post(client, png(100), png(120), png(140))]
    page = client.get("/v1/predictions?limit=2&order=oldest").json()
    rest = client.get(f"/v1/predictions?limit=2&order=oldest&after={page['next']}").json()
    assert [each["id"] for each in page["predictions"] + rest["predictions"]] == ids
    highest = client.get("/v1/predictions?order=highest").json()["predictions"]
    assert [each["id"] for each in highest] == ids[::-1]


def test_card_is_that_of_the_bundle(client, model):
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
        ("GET", "/v1/predictions", {"headers": {"Host": "evil.example"}}, 403, "forbidden"),
        (
            "POST",
            "/v1/predictions",
            {"files": images(b"x"), "headers": {"Origin": "http://evil.example"}},
            403,
            "forbidden",
        ),
    ],
)
def test_errors_are_rfc9457_problem_documents(client, method, path, options, status, error):
    problem(client.request(method, path, **options), status, error)


def test_body_of_unknown_length_is_limited(client):
    parts = (b"x" * 10_000 for _ in range(30))
    answer = client.post("/v1/predictions", content=parts, headers={"Content-Type": "image/png"})
    problem(answer, 413, "too_large")


@pytest.mark.parametrize(
    ("name", "reason"),
    [(b"\\ud800", "half of a surrogate"), (b"a\\x00", "U\\+0000")],
)
def test_name_that_cannot_be_stored_is_rejected(client, name, reason):
    """The form declares Python's escapes as its character encoding."""
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="' + name + b'"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    answer = client.post("/v1/predictions", content=head + png() + b"\r\n--x--\r\n", headers=kind)
    assert re.search(reason, problem(answer, 422, "usage")["detail"])


@pytest.mark.parametrize("path", ["/v1/predictions", "/sign-in"])
@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "idna", "nowhere"])
def test_form_with_an_unknown_encoding_is_a_client_error(model, path, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n\\ud800\xff\r\n--x--\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}", "Authorization": f"Bearer {TOKEN}"}
    with TestClient(
        create_app(model, repository_with_token("me"), Settings(loopback=False), require_token=True)
    ) as client:
        assert client.post(path, content=body, headers=kind).status_code in (401, 422)


def test_unwritable_temporary_folder_is_reported(client, monkeypatch, app, caplog):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    app.user_middleware = [each for each in app.user_middleware if each.cls is not BodyLimitMiddleware]
    app.middleware_stack = None  # without the limit on bytes
    answer = client.post("/v1/predictions", files=images(bytes(2 * 2**20)))
    problem(answer, 503, "storage")
    assert "temporary folder: No such file or directory" in caplog.text


def test_every_response_has_security_headers(client):
    (found,) = post(client, png())
    for path in ("/healthz", "/v1/predictions", "/nowhere", f"/v1/predictions/{found['id']}/image.png"):
        for method in ("GET", "OPTIONS"):
            headers = client.request(method, path, headers={"Origin": "https://elsewhere.example"}).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert not [name for name in headers if name.startswith("access-control-")]  # no CORS


def test_messages_are_in_the_language_of_the_request(client):
    (found,) = post(client, png(30))
    assert found["message"].startswith(
        "Black and white appear to be inverted. Probability of an upright chest radiograph: "
    )
    for path in (f"/v1/predictions/{found['id']}", "/v1/predictions"):
        document = client.get(path, headers={"Accept-Language": "zh-TW,en;q=0.5"}).json()
        (prediction,) = document.get("predictions", [document])
        assert re.search("[\u4e00-\u9fff]", document["notice"])
        assert re.search("[\u4e00-\u9fff]", prediction["message"])
        assert prediction["rejection"] == found["rejection"]


def test_notice_of_the_service_states_the_population_of_its_model(shared_maker):
    population = Population(ages=(18, 90), sites=2, view="PA")
    model = load_model(shared_maker.bundle(shared_maker.root / "adults served", population=population), threads=1)
    app = create_app(model, PredictionRepository(None))
    english, chinese = notice(population), notice(population, "zh-Hant")
    assert app.openapi()["info"]["description"] == english
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        (found,) = post(client, png())
        for path in ("/", f"/images/{found['id']}", f"/images/{found['id']}/report", "/model"):
            assert english in client.get(path).text, path
            assert chinese in client.get(f"{path}?language=zh-Hant").text, path
            client.cookies.clear()
        for path in ("/v1/predictions", f"/v1/predictions/{found['id']}"):
            assert client.get(path).json()["notice"] == english
            assert client.get(path, headers={"Accept-Language": "zh-TW"}).json()["notice"] == chinese
        assert english in client.get("/worklist.csv").text


def test_openapi_derives_predictions_from_the_record(app):
    schemas = app.openapi()["components"]["schemas"]
    stored = {each.name for each in dataclasses.fields(StoredPrediction)}
    assert set(schemas["PredictionDocument"]["properties"]) == stored | {"message"}
    assert set(schemas["SinglePredictionDocument"]["properties"]) == stored | {"message", "notice"}
    for name in ("probability", "image_sha256", "message", "notice"):
        assert schemas["SinglePredictionDocument"]["description"].count(f"\n    {name}: ") == 1


def test_telemetry_is_off(client, monkeypatch):
    """FastAPI would, to the collector in the environment; URLs may contain names of images."""

    def fail():
        raise AssertionError("telemetry is on")

    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", fail)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", fail)
    answer = client.post("/v1/predictions?name=DOE", content=png(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 201


def test_at_most_two_images_are_rendered_at_once(model, client, monkeypatch):
    ids = [each["id"] for each in post(client, png(90), png(120), png(150))]
    two, go, began, decode = threading.Barrier(3), threading.Event(), [], model.decode

    def held(*arguments, **options):
        began.append(1)
        if len(began) <= 2:
            two.wait(60)
        assert go.wait(60)
        return decode(*arguments, **options)

    monkeypatch.setattr(model, "decode", held)
    with ThreadPoolExecutor(6) as pool:
        pictures = ("image.png", "thumbnail.png")
        responses = [pool.submit(client.get, f"/v1/predictions/{key}/{name}") for key in ids for name in pictures]
        two.wait(60)
        time.sleep(0.3)
        assert len(began) == 2
        go.set()
        assert [each.result(60).status_code for each in responses] == 6 * [200]
    assert len(began) == 6


def test_every_operation_except_health_checks_and_metrics_requires_a_token(model):
    app = create_app(model, repository_with_token("me"), Settings(loopback=False), require_token=True)
    with TestClient(app) as client:
        paths = client.get("/openapi.json").json()["paths"]
        open_paths = [
            path
            for path, operations in paths.items()
            for method in operations
            if client.request(method, path.replace("{id}", "ab" * 16)).status_code != 401
        ]
    assert open_paths == ["/healthz", "/readyz", "/metrics"]


def test_token_that_is_missing_or_wrong_is_rejected(model):
    app = create_app(model, repository_with_token("me"), Settings(loopback=False), require_token=True)
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


def test_readiness_fails_if_the_self_test_fails(client, app, monkeypatch):
    now = [0.0]
    app.state.readiness = Readiness(app.state.service.model, app.state.service.repository, lambda: now[0])
    assert client.get("/readyz").json() == {"status": "ok"}
    monkeypatch.setattr(
        "pneumoscope.inference.session.self_test_image", lambda size: np.zeros((1, size, size), np.uint8)
    )
    assert client.get("/readyz").status_code == 200  # the result of the last check
    now[0] += 2
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


def test_patient_name_is_not_in_logs_metrics_or_errors(client, caplog, app):
    """It is only in the prediction; test_middleware.py checks the log lines of failed requests."""
    caplog.set_level(logging.INFO, "pneumoscope.service")
    named = [("images", (f"{CANARY}.png", b"no image"))]
    output = client.post("/v1/predictions", files=named).text
    output += client.post("/v1/predictions", files=[("images", (CANARY, png()))]).headers.__repr__()
    (found,) = client.get("/v1/predictions").json()["predictions"]
    assert found["path"] == CANARY
    output += client.put(f"/v1/predictions/{found['id']}/review", json={"label": CANARY, "note": CANARY}).text
    output += client.get(f"/v1/predictions/{CANARY}").text
    output += client.get(f"/v1/predictions?since={CANARY}&until={CANARY}&after={CANARY}&limit={CANARY}").text
    client.get(f"/v1/predictions?{CANARY}={CANARY}")  # the response names the unknown parameter
    client.get(f"/{CANARY}", headers={"Authorization": CANARY, "Origin": CANARY, "User-Agent": CANARY})
    client.request(CANARY, "/v1/predictions")
    assert caplog.text.count("\n") == 7
    output += client.get("/metrics").text + caplog.text
    assert CANARY not in output.replace(f"/v1/predictions/{CANARY}", "")


def test_audit_log_records_users_and_events(model):
    repository = repository_with_token("me")
    with TestClient(create_app(model, repository, Settings(loopback=False), require_token=True)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        (found,) = post(client, png())
        path = f"/v1/predictions/{found['id']}"
        assert client.put(f"{path}/review", json={"label": "pneumonia"}).json()["reviews"][0]["reviewer"] == "me"
        client.delete(path)
        assert verify(repository.engine).rows == 3
        with repository.engine.connect() as connection:
            rows = connection.exec_driver_sql('SELECT "user", event FROM audit_log ORDER BY number').all()
        assert [tuple(row) for row in rows] == [("me", "predicted"), ("me", "reviewed"), ("me", "deleted")]


def test_405_lists_the_allowed_methods(client):
    for method, path, taken in [
        ("PUT", "/v1/predictions", "GET, HEAD, POST"),
        ("PUT", "/v1/predictions/" + "ab" * 16, "DELETE, GET, HEAD"),
        ("GET", f"/v1/predictions/{'ab' * 16}/review", "DELETE, PUT"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/sign-in", "GET, HEAD, POST"),
    ]:
        answer = client.request(method, path)
        problem(answer, 405, "usage")
        assert answer.headers["Allow"] == taken


def test_head_has_the_headers_of_get(client):
    (found,) = post(client, png())
    for path in (
        "/",
        "/healthz",
        "/metrics",
        "/v1/model",
        f"/v1/predictions/{found['id']}/image.png",
        "/static/style.css",
    ):
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert client.head("/v1/predictions/" + "ab" * 16).status_code == 404
    assert 'method="HEAD",path="/healthz",status="200"} 1.0' in client.get("/metrics").text


def test_openapi_describes_errors_and_tokens(model, app):
    asks = create_app(model, repository_with_token("me"), require_token=True).openapi()
    for path, operations in asks["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == path.startswith(("/v1/", "/dicom-web/", "/fhir/"))
            for status, answer in operation["responses"].items():
                if (path, status) == ("/dicom-web/studies", "409"):
                    continue  # the response that DICOM defines
                if int(status) >= 400:
                    (content,) = answer["content"].items()
                    if path.startswith("/fhir/"):
                        assert content[0] == "application/fhir+json"
                        assert content[1]["example"]["resourceType"] == "OperationOutcome"
                        continue
                    assert content[0] == PROBLEM_MEDIA_TYPE
                    assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
                    assert content[1]["example"]["status"] == int(status)
    assert set(asks["components"]["schemas"]["Problem"]["properties"]) >= {"type", "title", "status", "detail"}
    assert "security" not in app.openapi()["paths"]["/v1/model"]["get"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "in the system")]
)
def test_too_many_open_files_is_busy(client, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pneumoscope.service.storage.repository.PredictionRepository.get", fail)
    answer = client.get("/v1/predictions/" + "ab" * 16)
    problem(answer, 503, "busy")
    assert answer.headers["Retry-After"]


def test_review_requires_a_known_label(client):
    (found,) = post(client, png())
    for like in ("yes", 1, True, "normal", "", None):
        problem(client.put(f"/v1/predictions/{found['id']}/review", json={"label": like}), 422, "usage")


def test_long_key_of_a_body_is_cut_in_the_problem(client):
    (found,) = post(client, png())
    body = {"label": "pneumonia", "x" * 5000: 1}
    document = problem(client.put(f"/v1/predictions/{found['id']}/review", json=body), 422, "usage")
    assert document["detail"].startswith(f"body.{'x' * 64}: ")
    assert len(document["detail"]) < 200


def test_openapi_has_every_path(app):
    study, series = "/dicom-web/studies/{study}", "/dicom-web/studies/{study}/series/{series}"
    instance = f"{series}/instances/{{instance}}"
    assert set(app.openapi()["paths"]) == {
        "/dicom-web/series", "/dicom-web/instances", study, f"{study}/series", f"{study}/instances", f"{study}/metadata",
        series, f"{series}/instances", f"{series}/metadata", instance, f"{instance}/metadata", f"{instance}/rendered",
        f"{instance}/frames/{{frames}}",
        "/healthz", "/readyz", "/metrics", "/v1/predictions", "/v1/predictions/{id}", "/v1/predictions/{id}/image.png",
        "/v1/predictions/{id}/pixels", "/v1/predictions/{id}/heatmap.png", "/v1/predictions/{id}/heatmap-layer.png",
        "/v1/predictions/{id}/thumbnail.png", "/v1/predictions/{id}/review", "/v1/model",
        "/v1/unreadable", "/v1/unreadable/{id}", "/v1/predictions/search", "/v1/predictions/{id}/identity",
        "/v1/studies/{study_key}", "/v1/patients/{patient_key}", "/v1/tokens", "/v1/tokens/{token_id}", "/dicom-web/studies",
        "/v1/exchange", "/v1/inbox/release",
        "/v1/predictions/{id}/secondary-capture.dcm", "/v1/predictions/{id}/structured-report.dcm",
        "/fhir/metadata", "/fhir/DiagnosticReport/{id}", "/fhir/Observation/{id}",
    }  # fmt: skip


@pytest.mark.slow
def test_responses_conform_to_openapi(model, monkeypatch):
    """Schemathesis sends valid and invalid requests to each path."""
    monkeypatch.setattr(
        SignInThrottle, "record_failure", lambda *_: None
    )  # many requests have a wrong token on purpose
    app = create_app(model, repository_with_token("me"), Settings(loopback=False), require_token=True)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    sent = Counter()
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = found.ok()
        if operation.label == "POST /dicom-web/studies":  # Schemathesis cannot write multipart/related
            continue
        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        for mode in modes if operation.path.startswith("/v1/predictions") else modes[:1]:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
            )
            def ask(case):
                # The schema does not describe which bytes are an image, or which ids exist. The fields of a form are texts, so
                # that a value of another type is a valid one.
                excluded = [positive_data_acceptance]
                if case.operation.path == "/v1/predictions":
                    excluded.append(negative_data_rejection)
                case.call_and_validate(headers=bearer, excluded_checks=excluded)
                sent[case.operation.label] += 1

            ask()
    assert len(sent) == 47
    assert sent.total() > 150


# --- age of the patient ------------------------------------------------------------------------------------------------


@pytest.fixture
def child_client(child_bundle, request):
    """A client of a service whose model has an age range; the parameter is `require_age`, "dicom" by default."""
    required = load_model(child_bundle, threads=1, require_age=getattr(request, "param", "dicom"))
    app = create_app(required, PredictionRepository(None))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as opened:
        yield opened


def post_with_age(client, age, *contents):
    response = client.post("/v1/predictions", params={"age": age}, files=images(*contents))
    assert response.status_code == 201, response.text
    return response.json()["predictions"]


def test_entered_age_is_used_for_all_images_whose_file_states_none(child_client):
    found = post_with_age(child_client, "3.5", png(), dicom(), dicom(PatientAge="004Y"), b"no image")
    entered, header = {"years": 3.5, "source": "entered", "stated": ""}, {"years": 4, "source": "header", "stated": ""}
    assert [each["age"] for each in found] == [entered, entered, header, None]
    assert [each["warnings"] for each in found] == [[], [], [], []]
    assert fetch(child_client, found[0]["id"])["age"] == entered


def test_prediction_with_an_entered_age_is_another_prediction(child_client):
    (warned, rejected), (predicted, accepted) = (
        post(child_client, png(), dicom()),
        post_with_age(child_client, 3, png(), dicom()),
    )
    assert (warned["decision"], warned["warnings"]) == ("no_pneumonia", ["age_not_stated"])
    assert warned["message"].startswith("Other findings are not assessed. Age not stated")
    assert rejected["rejection"]["code"] == "age_required"
    assert (predicted["warnings"], predicted["message"]) == ([], "Other findings are not assessed")
    assert accepted["decision"] == "no_pneumonia"
    (outside,) = post_with_age(child_client, 30, png())
    assert outside["rejection"]["code"] == "outside_age_range"
    assert predicted["id"] == accepted["id"]  # both files have the same pixels
    assert len({each["id"] for each in (warned, rejected, predicted, outside)}) == 4


def test_entered_age_is_kept_when_the_image_is_sent_again(child_client):
    (found,) = post_with_age(child_client, 3, dicom())
    assert post(child_client, dicom(), png()) == 2 * [found]  # the same pixels
    (corrected,) = post_with_age(child_client, 30, png())
    assert post(child_client, dicom())[0]["id"] == corrected["id"]
    (stated,) = post(child_client, dicom(PatientAge="004Y"))
    assert stated["age"]["source"] == "header"


def test_entered_age_is_not_that_of_another_patient(child_client):
    post_with_age(child_client, 3, dicom(PatientID="1", PatientName="Doe^Jane"))
    (same,) = post(child_client, dicom(PatientID="1", PatientName="Doe^Jane"))
    assert same["age"]["years"] == 3
    for other in ({"PatientID": "2"}, {"PatientID": "1", "PatientName": "Roe^Rita"}):
        (found,) = post(child_client, dicom(**other))
        assert (found["age"], found["rejection"]["code"]) == (None, "age_required")


def test_rejection_under_one_policy_is_not_returned_under_another(child_bundle, tmp_path):
    found = []
    for require_age in ("always", "never", "always"):
        loaded = load_model(child_bundle, threads=1, require_age=require_age)
        app = create_app(loaded, PredictionRepository(tmp_path / "data"))
        with TestClient(app, base_url="http://127.0.0.1:8000") as opened:
            found += post(opened, png())
    assert [each["decision"] for each in found] == ["rejected", "no_pneumonia", "rejected"]
    assert found[2] == found[0] | {"last_predicted": found[2]["last_predicted"]}
    assert found[2]["last_predicted"] > found[1]["last_predicted"]


@pytest.mark.parametrize("age", ["-1", "131", "nan", "inf", "three", ""])
def test_impossible_age_is_a_problem(client, age):
    found = problem(client.post("/v1/predictions", params={"age": age}, files=images(png())), 422, "usage")
    assert "age" in found["detail"]


@pytest.mark.parametrize("child_client", ["always"], indirect=True)
def test_image_with_an_entered_age_has_its_heatmap(child_client):
    (found,) = post_with_age(child_client, 3, png())
    for name in ("heatmap.png", "heatmap-layer.png"):
        assert child_client.get(f"/v1/predictions/{found['id']}/{name}").status_code == 200
