"""Roles in the API, and the management of tokens."""

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import TOKEN, insert_token, png, post, problem, repository_with_token

from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.auth.throttle import SignInThrottle
from pneumoscope.service.settings import Settings

SENDER, READER = "sender".ljust(16, "-"), "reader".ljust(16, "-")
ID = "ab" * 16


@pytest.fixture
def clients(model):
    """Clients of one service by role."""
    repository = repository_with_token("admin")
    insert_token(repository.engine, "scanner-1", SENDER, "sender", id="00000002")
    insert_token(repository.engine, "dr.lin", READER, "reader", id="00000003")
    app = create_app(model, repository, Settings(loopback=False), require_token=True)
    with TestClient(app) as administrator:
        found = {"administrator": administrator}
        for role, secret in (("sender", SENDER), ("reader", READER), ("administrator", TOKEN)):
            client = found.setdefault(role, TestClient(app))
            client.headers["Authorization"] = f"Bearer {secret}"
        yield found


# Operations of the API by the lowest role that may use them; those without a role require no token.
OPERATIONS = {
    "": {"GET /healthz", "GET /readyz", "GET /metrics"},
    "sender": {
        "POST /v1/predictions", "GET /v1/predictions/{id}", "GET /v1/predictions/{id}/image.png",
        "GET /v1/predictions/{id}/heatmap.png", "GET /v1/predictions/{id}/heatmap-layer.png", "GET /v1/model",
        "POST /dicom-web/studies", "POST /v1/inbox/release", "GET /v1/predictions/{id}/secondary-capture.dcm",
        "GET /v1/predictions/{id}/structured-report.dcm",
    },
    "administrator": {
        "DELETE /v1/predictions/{id}", "DELETE /v1/studies/{study_key}", "DELETE /v1/patients/{patient_key}",
        "DELETE /v1/unreadable/{id}", "GET /v1/exchange", "GET /v1/tokens", "POST /v1/tokens", "DELETE /v1/tokens/{token_id}",
    },
}  # fmt: skip


def test_each_operation_requires_its_role(clients):
    document = clients["administrator"].get("/openapi.json").json()
    operations = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    for method, path in operations:
        lowest = next((role for role, names in OPERATIONS.items() if f"{method} {path}" in names), "reader")
        url = path.replace("{token_id}", "ab" * 4)
        for name in ("id", "study_key", "patient_key"):
            url = url.replace(f"{{{name}}}", ID)
        roles = ["sender", "reader", "administrator"]
        for role in roles:
            answer = clients[role].request(method, url)
            if lowest and roles.index(role) < roles.index(lowest):
                if path.startswith("/fhir/"):
                    assert (answer.status_code, answer.json()["resourceType"]) == (403, "OperationOutcome")
                    continue
                found = problem(answer, 403, "forbidden")
                assert found["detail"] == f"the role {role!r} may not do this; it requires the role {lowest!r}"
            else:
                assert answer.status_code not in (401, 403), (role, method, path)


def test_sender_gets_the_prediction_of_its_image_only_by_id(clients):
    (found,) = post(clients["sender"], png())
    assert clients["sender"].get(f"/v1/predictions/{found['id']}").json()["id"] == found["id"]
    problem(clients["sender"].get("/v1/predictions"), 403, "forbidden")
    problem(
        clients["sender"].put(f"/v1/predictions/{found['id']}/review", json={"label": "pneumonia"}), 403, "forbidden"
    )


def test_added_token_works_until_it_is_revoked(clients):
    administrator = clients["administrator"]
    answer = administrator.post("/v1/tokens", json={"user": "ward-9", "role": "reader"})
    assert answer.status_code == 201
    token, secret = answer.json()["token"], answer.json()["secret"]
    assert (token["user"], token["role"], token["created_by"], token["revoked"]) == ("ward-9", "reader", "admin", None)
    bearer = {"Authorization": f"Bearer {secret}"}
    assert administrator.get("/v1/predictions", headers=bearer).status_code == 200
    listed = administrator.get("/v1/tokens")
    assert secret not in listed.text
    assert {each["user"] for each in listed.json()["tokens"]} == {"admin", "scanner-1", "dr.lin", "ward-9"}
    assert administrator.delete(f"/v1/tokens/{token['id']}").status_code == 204
    problem(administrator.get("/v1/predictions", headers=bearer), 401, "authentication")
    problem(administrator.delete(f"/v1/tokens/{token['id']}"), 404, "unknown_name")


@pytest.mark.parametrize(
    "body",
    [
        {"user": "a b", "role": "reader"},
        {"user": "a", "role": "king"},
        {"user": "local", "role": "reader"},
        {"user": "a"},
    ],
)
def test_invalid_token_is_not_added(clients, body):
    problem(clients["administrator"].post("/v1/tokens", json=body), 422, "usage")
    assert len(clients["administrator"].get("/v1/tokens").json()["tokens"]) == 3


def test_tokens_of_a_service_without_authentication_are_managed_by_the_command_line(client):
    found = problem(client.get("/v1/tokens"), 422, "usage")
    assert "pneumoscope tokens add" in found["hint"]


def test_guessing_a_token_is_slowed_down_but_known_tokens_work(clients, monkeypatch):
    client = clients["reader"]
    # The delay of a second does not pass while a busy machine answers.
    monkeypatch.setattr(client.app.state.authenticator, "throttle", SignInThrottle(lambda: 1000.0))
    for _ in range(5):
        problem(client.get("/v1/predictions", headers={"Authorization": "Bearer guess"}), 401, "authentication")
    answer = client.get("/v1/predictions", headers={"Authorization": "Bearer guess"})
    found = problem(answer, 429, "too_many_requests")
    assert (answer.headers["Retry-After"], found["hint"]) == ("1", "Try again in 1 seconds")
    assert client.get("/v1/predictions").status_code == 200
    problem(client.get("/v1/predictions", headers={"Authorization": "Bearer guess"}), 429, "too_many_requests")


def test_every_way_to_view_an_image_is_in_the_audit_log(model):
    for path in ("", "/image.png", "/heatmap.png", "/heatmap-layer.png"):
        repository = repository_with_token("admin")
        with TestClient(create_app(model, repository, Settings(loopback=False), require_token=True)) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            (found,) = post(client, png())
            assert client.get(f"/v1/predictions/{found['id']}/thumbnail.png").status_code == 200
            client.get("/v1/predictions")
            assert [row.event for row in read_rows(repository.engine)] == ["predicted"]
            assert client.get(f"/v1/predictions/{found['id']}{path}").status_code == 200
            *_, row = read_rows(repository.engine)
            assert (row.event, row.user, row.prediction_id) == ("viewed", "admin", found["id"])
