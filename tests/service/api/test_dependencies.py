"""What is asked wrongly is refused in words: a parameter that does not exist, a time that is none, a body of another kind."""

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import TOKEN, images, png, post, problem

from pneumoscope.service.app import Settings, create_app
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.storage.repository import PredictionRepository

ID = "ab" * 16


@pytest.mark.parametrize(
    ("method", "path", "name", "hint"),
    [
        ("GET", "/v1/predictions?decison=normal", "decison", "Did you mean 'decision'?"),
        ("GET", "/v1/predictions?decision=normal&colour=grey", "colour", "Known: after, decision, limit, order, "),
        ("POST", "/v1/predictions?names=a", "names", "Did you mean 'name'?"),
        ("GET", f"/v1/predictions/{ID}?size=9", "size", "It takes none"),
        ("DELETE", f"/v1/predictions/{ID}?force=true", "force", "It takes none"),
        ("PUT", f"/v1/predictions/{ID}/review?agrees=true", "agrees", "It takes none"),
        ("GET", "/v1/model?saw=true", "saw", "Known: seen"),
    ],
)
def test_a_parameter_that_does_not_exist_is_refused_by_its_name(client, method, path, name, hint):
    found = problem(client.request(method, path, headers={"Content-Type": "application/json"}), 422, "usage")
    assert found["detail"] == f"there is no query parameter {name!r} here"
    assert found["hint"].startswith(hint)


def test_parameters_that_exist_are_taken(client):
    (found,) = post(client, png())
    asked = "decision=normal&reviewed=false&since=2026-01-01&until=2100-01-01T00:00Z&order=lowest&limit=3"
    page = client.get(f"/v1/predictions?{asked}").json()
    assert page["predictions"] == [found]
    post(client, png(150))
    following = client.get("/v1/predictions?limit=1&order=lowest").json()["next"]
    page = client.get("/v1/predictions", params={"order": "lowest", "limit": 1, "after": following}).json()
    assert [each["path"] for each in page["predictions"]] == ["image 0.png"]


def test_a_parameter_that_stands_there_twice_is_refused(client):
    found = problem(client.get("/v1/predictions?limit=1&limit=2"), 422, "usage")
    assert found["detail"] == "the query parameter 'limit' stands there twice"


def test_an_address_that_there_is_not_says_where_all_are(client):
    assert problem(client.get("/v1/nothing"), 404, "unknown_name")["hint"] == "See /openapi.json for what there is"
    assert problem(client.patch("/v1/predictions"), 405, "usage")["detail"] == "this address takes other methods"


def test_who_has_no_token_learns_of_no_parameter(model):
    with TestClient(
        create_app(model, PredictionRepository(None), Authenticator({"me": TOKEN}), Settings(loopback=False))
    ) as client:
        problem(client.get("/v1/predictions?decison=normal"), 401, "authentication")


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("value", ["yesterday", "2026-01-31 09:30", "2026-01-31T09:30:00", "20260131"])
def test_how_a_time_is_written_is_said_in_words(client, name, value):
    found = problem(client.get("/v1/predictions", params={name: value}), 422, "usage")
    assert found["detail"] == f"query.{name}: a time is written 2026-01-31 or 2026-01-31T09:30:00Z, in UTC"


@pytest.mark.parametrize("name", ["since", "until"])
def test_a_time_that_there_is_not_is_told(client, name):
    found = problem(client.get(f"/v1/predictions?{name}=2026-02-30"), 422, "usage")
    assert found["detail"] == f"{name} is '2026-02-30', which is no time"


def test_other_forms_are_said_in_words_as_well(client):
    assert "32 digits" in problem(client.get("/v1/predictions/xyz"), 422, "usage")["detail"]
    assert "`next`" in problem(client.get("/v1/predictions?after=xyz"), 422, "usage")["detail"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/json-seq"]
)
def test_a_review_of_another_kind_of_content_is_not_taken(client, kind):
    (found,) = post(client, png())
    answer = client.put(
        f"/v1/predictions/{found['id']}/review", content=b'{"agrees": true}', headers={"Content-Type": kind}
    )
    assert f"is {kind!r}; taken is application/json" in problem(answer, 415, "usage")["detail"]
    assert client.get(f"/v1/predictions/{found['id']}").json()["review"] is None


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
)
def test_a_review_comes_as_json(client, kind):
    (found,) = post(client, png())
    answer = client.put(
        f"/v1/predictions/{found['id']}/review", content=b'{"agrees": true}', headers={"Content-Type": kind}
    )
    assert answer.json()["review"]["agrees"] is True


def test_a_character_that_postgresql_cannot_keep_is_refused(client):
    raw = client.post("/v1/predictions?name=a%00b", content=png(), headers={"Content-Type": "image/png"})
    assert "U+0000" in problem(raw, 422, "usage")["detail"]
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a\0b"\r\n\r\nimage\r\n--x--\r\n'
    form = client.post("/v1/predictions", content=part, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert "U+0000" in problem(form, 422, "usage")["detail"]
    (found,) = post(client, png())
    note = client.put(f"/v1/predictions/{found['id']}/review", json={"agrees": True, "note": "a\0b"})
    assert "U+0000" in problem(note, 422, "usage")["detail"]
    assert client.put(f"/v1/predictions/{found['id']}/review", json={"agrees": True, "note": "a\n\u2028b"}).is_success


def test_the_images_that_the_model_saw_are_shown_where_they_are_asked_for(client, model):
    short, whole = client.get("/v1/model").json(), client.get("/v1/model?seen=true").json()
    assert "seen" not in short
    assert whole == {**short, "seen": {split: list(hashes) for split, hashes in model.card.seen.items()}}
    (described,) = client.get("/openapi.json").json()["paths"]["/v1/model"]["get"]["parameters"]
    assert (described["name"], described["schema"]["default"]) == ("seen", False)


def test_a_form_has_the_images_alone_to_say_what_they_are_called(client):
    """`name` is of an image that is the body; that a form comes with it is no mistake worth an error."""
    (found,) = client.post("/v1/predictions?name=a", files=images(png())).json()["predictions"]
    assert found["path"] == "image 0.png"
