"""Query parameters, names and content types: invalid ones are rejected with an explanation."""

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import fetch, images, png, post, problem, repository_with_token

from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import notice
from pneumoscope.service.app import create_app
from pneumoscope.service.settings import Settings

ID = "ab" * 16


@pytest.mark.parametrize(
    ("method", "path", "name", "hint"),
    [
        ("GET", "/v1/predictions?decison=pneumonia", "decison", "Did you mean 'decision'?"),
        (
            "GET",
            "/v1/predictions?decision=no_pneumonia&color=gray",
            "color",
            "Known: after, decision, limit, order, ",
        ),
        ("POST", "/v1/predictions?names=a", "names", "Did you mean 'name'?"),
        ("GET", f"/v1/predictions/{ID}?size=9", "size", "Remove it"),
        ("DELETE", f"/v1/predictions/{ID}?force=true", "force", "Remove it"),
        ("PUT", f"/v1/predictions/{ID}/review?agrees=true", "agrees", "Remove it"),
        ("GET", "/v1/model?saw=true", "saw", "Known: seen"),
    ],
)
def test_unknown_parameter_is_rejected_by_name(client, method, path, name, hint):
    found = problem(client.request(method, path, headers={"Content-Type": "application/json"}), 422, "usage")
    assert found["detail"] == f"there is no query parameter {name!r} on this path"
    assert found["hint"].startswith(hint)


def test_known_parameters_filter_and_page(client):
    (found,) = post(client, png())
    query = "decision=no_pneumonia&reviewed=false&since=2026-01-01&until=2100-01-01T00:00Z&order=lowest&limit=3"
    page = client.get(f"/v1/predictions?{query}").json()
    assert page["predictions"] == [found]
    assert page["notice"] == notice(Population())
    post(client, png(150))
    following = client.get("/v1/predictions?limit=1&order=lowest").json()["next"]
    page = client.get("/v1/predictions", params={"order": "lowest", "limit": 1, "after": following}).json()
    assert [each["path"] for each in page["predictions"]] == ["image 0.png"]


def test_repeated_parameter_is_rejected(client):
    found = problem(client.get("/v1/predictions?limit=1&limit=2"), 422, "usage")
    assert found["detail"] == "the query parameter 'limit' is repeated"


def test_unknown_path_refers_to_the_openapi_document(client):
    assert problem(client.get("/v1/nothing"), 404, "unknown_name")["hint"] == "See /openapi.json for the paths"
    assert problem(client.patch("/v1/predictions"), 405, "usage")["detail"] == "this path does not support the method"


def test_authentication_comes_before_parameters(model):
    with TestClient(
        create_app(model, repository_with_token("me"), Settings(loopback=False), require_token=True)
    ) as client:
        problem(client.get("/v1/predictions?decison=pneumonia"), 401, "authentication")


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("value", ["yesterday", "2026-01-31 09:30", "2026-01-31T09:30:00", "20260131"])
def test_malformed_time_is_rejected_with_its_format(client, name, value):
    found = problem(client.get("/v1/predictions", params={name: value}), 422, "usage")
    assert found["detail"] == f"query.{name}: write a time as 2026-01-31 or 2026-01-31T09:30:00Z, in UTC"


@pytest.mark.parametrize("name", ["since", "until"])
def test_nonexistent_date_is_rejected(client, name):
    found = problem(client.get(f"/v1/predictions?{name}=2026-02-30"), 422, "usage")
    assert found["detail"] == f"{name} is '2026-02-30', which is not a time"


def test_malformed_id_and_cursor_are_explained(client):
    assert "32 digits" in problem(client.get("/v1/predictions/xyz"), 422, "usage")["detail"]
    assert "`next`" in problem(client.get("/v1/predictions?after=xyz"), 422, "usage")["detail"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/json-seq"]
)
def test_review_of_another_content_type_is_rejected(client, kind):
    (found,) = post(client, png())
    answer = client.put(
        f"/v1/predictions/{found['id']}/review", content=b'{"label": "pneumonia"}', headers={"Content-Type": kind}
    )
    assert f"{kind!r} is not supported; use application/json" in problem(answer, 415, "usage")["detail"]
    assert fetch(client, found["id"])["reviews"] == []


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
)
def test_review_accepts_json_types(client, kind):
    (found,) = post(client, png())
    answer = client.put(
        f"/v1/predictions/{found['id']}/review", content=b'{"label": "pneumonia"}', headers={"Content-Type": kind}
    )
    assert answer.json()["reviews"][0]["label"] == "pneumonia"


def test_null_character_is_rejected(client):
    raw = client.post("/v1/predictions?name=a%00b", content=png(), headers={"Content-Type": "image/png"})
    assert "U+0000" in problem(raw, 422, "usage")["detail"]
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a\0b"\r\n\r\nimage\r\n--x--\r\n'
    form = client.post("/v1/predictions", content=part, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert "U+0000" in problem(form, 422, "usage")["detail"]
    (found,) = post(client, png())
    note = client.put(f"/v1/predictions/{found['id']}/review", json={"label": "pneumonia", "note": "a\0b"})
    assert "U+0000" in problem(note, 422, "usage")["detail"]
    assert client.put(
        f"/v1/predictions/{found['id']}/review", json={"label": "pneumonia", "note": "a\n\u2028b"}
    ).is_success


def test_card_contains_image_hashes_only_on_request(client, model):
    short, whole = client.get("/v1/model").json(), client.get("/v1/model?seen=true").json()
    assert "seen" not in short
    assert whole == {**short, "seen": {split: list(hashes) for split, hashes in model.card.seen.items()}}
    (described,) = client.get("/openapi.json").json()["paths"]["/v1/model"]["get"]["parameters"]
    assert (described["name"], described["schema"]["default"]) == ("seen", False)


def test_parameter_name_is_ignored_for_forms(client):
    """`name` names an image that is the body; the parts of a form have their own names."""
    (found,) = client.post("/v1/predictions?name=a", files=images(png())).json()["predictions"]
    assert found["path"] == "image 0.png"
