"""Signing in with a token or a code, roles on the pages, and the page of tokens."""

import re

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import TOKEN, insert_token, repository_with_token
from tests.service.web.helpers import BASE_URL, upload

from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.auth.throttle import SignInThrottle

SENDER, READER = "sender".ljust(16, "-"), "reader".ljust(16, "-")
ORIGIN = {"Origin": BASE_URL}
NOT_PERMITTED = (
    "Not permitted. Your role does not allow this, or the request did not come from a page of this service."
    " Ask an administrator."
)


@pytest.fixture
def app(bundle_folder):
    repository = repository_with_token("admin")
    insert_token(repository.engine, "scanner-1", SENDER, "sender", id="00000002")
    insert_token(repository.engine, "dr.lin", READER, "reader", id="00000003")
    return create_app(load_model(bundle_folder, threads=1), repository, require_token=True)


@pytest.fixture
def open_client(app):
    """Return clients of one service, signed in with a token."""
    with TestClient(app, base_url=BASE_URL) as started:
        assert started.get("/healthz").status_code == 200

        def open_one(token=""):
            client = TestClient(app, base_url=BASE_URL, follow_redirects=False, headers=ORIGIN)
            if token:
                assert client.post("/sign-in", data={"token": token}).status_code == 303
            return client

        yield open_one


def events(app):
    return [(row.event, row.user) for row in read_rows(app.state.service.repository.engine)]


def test_code_signs_in_another_device_once_with_the_same_role(app, open_client):
    computer, phone = open_client(READER), open_client()
    page = computer.post("/sign-in-code").text
    code = re.search(r'class="sign-in-code">([0-9A-Z]{4}-[0-9A-Z]{4})<', page)[1]
    assert "<svg viewBox=" in page
    assert f"#code={code}" not in page  # the QR code contains the address as an image only
    answer = phone.post("/sign-in", data={"code": code.lower().replace("-", " ")})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert "dr.lin" in phone.get("/").text
    assert phone.get("/tokens").status_code == 403
    second = open_client().post("/sign-in", data={"code": code})
    assert second.status_code == 401
    assert "The code is wrong, or it has expired." in second.text
    assert events(app) == [("signed_in", "dr.lin"), ("signed_in", "dr.lin")]


def test_qr_code_contains_the_sign_in_page_and_the_code(open_client, monkeypatch):
    """Segno's own test suite checks its codes; here the address matters."""
    made = []
    monkeypatch.setattr("pneumoscope.service.web.accounts.segno.make", lambda text, **_: made.append(text) or _Drawn())
    page = open_client(READER).post("/sign-in-code").text
    code = re.search(r'class="sign-in-code">([-0-9A-Z]+)<', page)[1]
    assert made == [f"{BASE_URL}/sign-in#code={code}"]
    assert "Other devices cannot reach this address" in page


class _Drawn:
    def svg_inline(self, **_):
        return "<svg/>"


def test_session_of_a_code_ends_with_the_session_that_created_it(app, open_client, monkeypatch):
    computer, phone = open_client(READER), open_client()
    codes = [
        re.search(r'sign-in-code">([-0-9A-Z]+)<', computer.post("/sign-in-code").text)[1] for _ in range(2)
    ]  # fmt: skip
    sessions = app.state.authenticator.sessions
    begun = []
    begin = type(sessions).begin
    monkeypatch.setattr(type(sessions), "begin", lambda *a, **k: begun.append(k["until"]) or begin(*a, **k))
    assert phone.post("/sign-in", data={"code": codes[0]}).status_code == 303
    assert begun == [sessions.get(computer.cookies["pneumoscope"]).expiry]
    computer.post("/sign-out")
    assert open_client().post("/sign-in", data={"code": codes[1]}).status_code == 401


def test_authorization_of_a_proxy_does_not_hide_the_session(open_client):
    client = open_client(READER)
    assert client.get("/", headers={"Authorization": "Basic cHJveHk6cGFzcw=="}).status_code == 200


def test_a_get_request_creates_no_code(open_client):
    page = open_client(READER).get("/sign-in-code").text
    assert 'class="sign-in-code"' not in page
    assert "Create a code" in page


def test_sender_cannot_sign_in_to_the_pages(app, open_client):
    client = open_client()
    answer = client.post("/sign-in", data={"token": SENDER})
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)
    assert NOT_PERMITTED in answer.text
    assert client.get("/", headers={"Authorization": f"Bearer {SENDER}"}).status_code == 403
    assert events(app) == []


def test_reader_sees_no_tools_of_administrators(open_client):
    reader, administrator = open_client(READER), open_client(TOKEN)
    (id,) = upload(reader, {"a.png": 100}).values()
    assert reader.post("/v1/predictions", files=[("images", ("b.png", b"no image"))]).status_code == 422
    (unreadable,) = reader.get("/v1/unreadable").json()["files"]
    for path, tool in ((f"/images/{id}", 'id="delete"'), ("/unreadable", "Remove"), ("/", 'href="/tokens"')):
        assert tool not in reader.get(path).text
        assert tool in administrator.get(path).text
    assert reader.post(f"/unreadable/{unreadable['id']}").status_code == 403
    assert reader.delete(f"/v1/predictions/{id}").status_code == 403
    page = reader.get("/tokens")
    assert page.status_code == 403
    assert NOT_PERMITTED in re.sub(r"</h1>\s*<p>", ". ", page.text)
    assert administrator.post(f"/unreadable/{unreadable['id']}").status_code == 303


def test_list_of_unreadable_files_names_the_sender(app, open_client):
    reader = open_client(READER)
    sent = reader.post(
        "/v1/predictions", files=[("images", ("a.dcm", b"no image"))], headers={"Authorization": f"Bearer {SENDER}"}
    )
    assert sent.status_code == 422
    page = reader.get("/unreadable").text
    assert "Sent by scanner-1" in page
    assert "由 scanner-1 傳送" in reader.get("/unreadable?language=zh-Hant").text


def test_revoking_a_token_ends_its_sessions_and_those_of_its_codes(app, open_client):
    administrator, reader, phone = open_client(TOKEN), open_client(READER), open_client()
    page = reader.post("/sign-in-code").text
    used, unused = (
        re.search(r'sign-in-code">([-0-9A-Z]+)<', text)[1] for text in (page, reader.post("/sign-in-code").text)
    )
    phone.post("/sign-in", data={"code": used})
    assert phone.get("/").status_code == reader.get("/").status_code == 200
    assert administrator.post("/tokens/00000003/revoke").headers["Location"] == "/tokens"
    for client in (reader, phone):
        assert client.get("/").headers["Location"].startswith("/sign-in")
        assert client.get("/v1/predictions").status_code == 401
    assert open_client().post("/sign-in", data={"code": unused}).status_code == 401
    assert administrator.get("/").status_code == 200
    assert ("token_revoked", "admin") in events(app)


def test_token_is_added_and_shown_once(open_client):
    administrator = open_client(TOKEN)
    answer = administrator.post("/tokens", data={"user": " ward-9 ", "role": "reader"})
    secret = re.search(r"<code>([\w-]{43})</code>", answer.text)[1]
    assert "The token of ward-9. Copy it now" in answer.text
    assert secret not in administrator.get("/tokens").text
    assert "ward-9" in open_client(secret).get("/").text


@pytest.mark.parametrize(("user", "role", "status"), [("a b", "reader", 422), ("", "reader", 422), ("a", "king", 404)])
def test_invalid_token_is_an_error_page(open_client, user, role, status):
    administrator = open_client(TOKEN)
    answer = administrator.post("/tokens", data={"user": user, "role": role})
    assert answer.status_code == status
    assert "Back to the worklist" in answer.text
    assert administrator.get("/tokens").text.count("00000") == 3  # their forms


def test_failed_sign_ins_are_slowed_down(app, open_client, monkeypatch):
    # The delay of a second does not pass while a busy machine answers.
    monkeypatch.setattr(app.state.authenticator, "throttle", SignInThrottle(lambda: 1000.0))
    client = open_client()
    for _ in range(5):
        assert client.post("/sign-in", data={"token": "guess"}).status_code == 401
    for data in ({"token": "guess"}, {"code": "GUESS"}):
        answer = client.post("/sign-in", data=data)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert "Too many failed attempts. Try again in 1 second." in answer.text
    assert client.get("/v1/predictions", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.post("/sign-in", data={"token": TOKEN}).status_code == 303  # others may share the address


def test_session_opens_no_page_of_tokens_without_authentication(client):
    answer = client.get("/tokens")
    assert answer.status_code == 422
    assert "started without authentication" in answer.text


def test_views_exports_and_sessions_are_in_the_audit_log(app, open_client):
    client = open_client(READER)
    (id,) = upload(client, {"a.png": 100}).values()
    for path in ("/", f"/images/{id}", f"/images/{id}/report", f"/v1/predictions/{id}/image.png", "/worklist.csv"):
        assert client.get(path).status_code == 200
    client.post("/sign-out")
    assert events(app) == [
        (event, "dr.lin") for event in ("signed_in", "predicted", "viewed", "exported", "signed_out")
    ]
