"""Signing in at an identity provider: a real one (oidc-provider-mock) on this machine."""

from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from tests.openid import SECRET, write_configuration
from tests.service.conftest import TOKEN, repository_with_token
from tests.service.web.helpers import BASE_URL

from pneumoscope.core.errors import UsageError
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows

module = pytest.importorskip("pneumoscope.service.auth.openid_connect", reason="[openid] is not installed")


NO_ROLE = (
    'Ask an administrator. <span class="note" lang="en">the user has no role for this service. Ask an administrator for'
)


@contextmanager
def service(model, tmp_path, issuer, **changes):
    """A client of a service with the identity provider; it does not follow redirects."""
    connection = module.OpenIdConnect(module.read_configuration(write_configuration(tmp_path, issuer, **changes)))
    app = create_app(model, repository_with_token("admin"), openid_connect=connection)
    with TestClient(app, base_url=BASE_URL, follow_redirects=False) as client:
        yield client


def authorize(client, sub, **form):
    """Start to sign in, authenticate at the provider, and return the address to which it redirects."""
    started = client.get("/sign-in/openid-connect", params={"next": "/dashboard"})
    assert started.status_code == 302
    answer = httpx.post(started.headers["Location"], data={"sub": sub, **form}, timeout=60)
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"]


@pytest.mark.parametrize(
    ("sub", "name", "role"), [("1", "dr.lin", "reader"), ("2", "it.chen", "administrator"), ("8", "single", "reader")]
)
def test_provider_determines_user_and_role(model, tmp_path, issuer, sub, name, role):
    with service(model, tmp_path, issuer) as client:
        assert client.get("/").headers["Location"] == "/sign-in?next=%2F"
        assert "Sign in with OpenID Connect" in client.get("/sign-in").text
        finished = client.get(authorize(client, sub))
        assert finished.status_code == 200
        assert 'content="0;url=/dashboard"' in finished.text  # not a redirection: browsers would withhold the cookie
        assert "SameSite=strict" in finished.headers["Set-Cookie"]
        assert name in client.get("/").text
        assert client.get("/tokens").status_code == (200 if role == "administrator" else 403)
        *_, row = read_rows(client.app.state.service.repository.engine)
        assert (row.event, row.user) == ("signed_in", name)
        assert row.details == f'{{"method": "openid_connect", "role": "{role}"}}'


@pytest.mark.parametrize(
    ("sub", "status", "words"),
    [
        ("3", 403, NO_ROLE),
        ("4", 401, "unsupported characters"),
        ("5", 401, "is reserved"),
        ("6", 401, "no claim &#39;preferred_username&#39;"),
        ("7", 403, NO_ROLE),
    ],
)
def test_user_without_name_or_role_is_not_signed_in(model, tmp_path, issuer, sub, status, words):
    with service(model, tmp_path, issuer) as client:
        answer = client.get(authorize(client, sub))
        assert answer.status_code == status
        assert words in answer.text
        assert client.get("/").status_code == 303
        assert list(read_rows(client.app.state.service.repository.engine)) == []


def test_denied_forged_and_repeated_responses_sign_no_one_in(model, tmp_path, issuer):
    with service(model, tmp_path, issuer) as client:
        for address in (
            authorize(client, "1", action="deny"),
            "/sign-in/openid-connect/callback",
            "/sign-in/openid-connect/callback?error=access_denied&error_description=<b>x</b>",
            authorize(client, "1") + "x",  # another state
            authorize(client, "1").replace("code=", "code=x"),
        ):
            answer = client.get(address)
            assert answer.status_code == 401, address
            assert "The identity provider did not sign you in." in answer.text
            assert "<b>" not in answer.text
        used = authorize(client, "1")
        assert client.get(used).status_code == 200
        client.post("/sign-out")
        assert client.get(used).status_code == 401
        assert client.get("/").status_code == 303


def test_response_for_another_browser_is_rejected(model, tmp_path, issuer):
    """A page of an attacker cannot sign a user in as the attacker."""
    with service(model, tmp_path, issuer) as client:
        address = authorize(client, "1")
        other = TestClient(client.app, base_url=BASE_URL, follow_redirects=False)
        assert other.get(address).status_code == 401


def test_request_to_the_provider_has_state_nonce_and_pkce(model, tmp_path, issuer):
    with service(model, tmp_path, issuer) as client:
        first, second = (
            parse_qs(urlsplit(client.get("/sign-in/openid-connect").headers["Location"]).query) for _ in range(2)
        )
    assert first["redirect_uri"] == [f"{BASE_URL}/sign-in/openid-connect/callback"]
    assert first["code_challenge_method"] == ["S256"]
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) >= 20
        assert first[name] != second[name]
    assert SECRET not in str(first)


def test_provider_that_cannot_be_reached_is_an_error_and_tokens_still_work(model, tmp_path):
    with service(model, tmp_path, "http://127.0.0.1:9") as client:
        answer = client.get("/sign-in/openid-connect")
        assert answer.status_code == 503
        assert "The identity provider cannot be reached." in answer.text
        assert client.post("/sign-in", data={"token": TOKEN}).status_code == 303


def test_target_of_the_sign_in_is_a_page_of_the_service(model, tmp_path, issuer):
    with service(model, tmp_path, issuer) as client:
        started = client.get("/sign-in/openid-connect", params={"next": "https://evil.example"})
        answer = httpx.post(started.headers["Location"], data={"sub": "1"}, timeout=60)
        assert 'content="0;url=/"' in client.get(answer.headers["Location"]).text


def test_without_a_provider_there_is_no_such_page(model):
    with TestClient(create_app(model, repository_with_token("admin"), require_token=True), base_url=BASE_URL) as client:
        assert client.get("/sign-in/openid-connect").status_code == 404
        assert "OpenID" not in client.get("/sign-in").text


def test_claims_may_have_other_names(model, tmp_path, issuer):
    names = {"display_name": "Clinic <login>", "user_claim": "sub", "role_claim": "preferred_username"}
    with service(model, tmp_path, issuer, **names) as client:
        assert "Sign in with Clinic &lt;login&gt;" in client.get("/sign-in").text
        assert client.get(authorize(client, "1")).status_code == 403


@pytest.mark.parametrize(
    ("claim", "sub", "status"),
    [
        ("realm_access.roles", "9", 200),
        ("realm_access.roles", "10", 403),
        ("realm_access.roles.name", "9", 403),
        ("https://clinic.example/roles", "9", 200),  # a claim whose name has dots
    ],
)
def test_role_claim_may_be_a_member_of_another_claim(model, tmp_path, issuer, claim, sub, status):
    with service(model, tmp_path, issuer, role_claim=claim) as client:
        assert client.get(authorize(client, sub)).status_code == status


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": 0o640}, "readable by other users"),
        ({"issuer": "http://login.example"}, "issuer: .*must be an https:// address"),
        ({"issuer": "login.example"}, "issuer: .*must be an https:// address"),
        ({"client_secret": None}, "client_secret: Field required"),
        ({"client_idd": "x"}, "client_idd: Extra inputs"),
        ({"client_id": 'x"y'}, "is not TOML"),
    ],
)
def test_wrong_configuration_is_rejected_without_showing_the_secret(tmp_path, changes, words):
    file = write_configuration(tmp_path, **({"issuer": "https://login.example"} | changes))
    with pytest.raises(UsageError, match=words) as caught:
        module.read_configuration(file)
    assert SECRET not in str(caught.value)


def test_missing_configuration_and_unknown_role_are_rejected(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        module.read_configuration(tmp_path / "nowhere")
    file = write_configuration(tmp_path, "https://login.example")
    file.write_text(file.read_text() + 'sender = "x"\n')
    with pytest.raises(UsageError, match=r"roles\.sender"):
        module.read_configuration(file)
