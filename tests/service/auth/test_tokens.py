"""Token files, authentication by token, and loopback addresses."""

import contextlib
import hmac

import pytest

from pneumoscope.core.errors import AuthenticationError, UsageError
from pneumoscope.service.auth.tokens import LOCAL, Authenticator, is_loopback, read_tokens

TOKEN = "0123456789abcdef"


def written(tmp_path, text, mode=0o600):
    file = tmp_path / "tokens"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_token_identifies_its_user(tmp_path):
    file = written(tmp_path, f"# comment\n\nward-3 {TOKEN}\nme@home   {TOKEN}2\n")
    authenticator = Authenticator(read_tokens(file))
    assert authenticator.authenticate(TOKEN) == "ward-3"
    assert authenticator.authenticate(f" {TOKEN}2") == "me@home"
    for wrong in ("", f"{TOKEN}3", TOKEN[:-1], "é" * 9, "\udcff"):
        with pytest.raises(AuthenticationError):
            authenticator.authenticate(wrong)


def test_every_token_is_compared_in_constant_time(monkeypatch):
    """`hmac.compare_digest` documents that it takes constant time."""
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda given, known: compared.append(known) or compare(given, known))
    authenticator = Authenticator({"ward-3": TOKEN, "ward-4": TOKEN + "4", "ward-5": TOKEN + "5"})
    for token in (TOKEN, TOKEN + "5", "wrong"):
        compared.clear()
        with contextlib.suppress(AuthenticationError):
            authenticator.authenticate(token)
        assert compared == [TOKEN.encode(), f"{TOKEN}4".encode(), f"{TOKEN}5".encode()]


def test_without_tokens_every_client_is_local():
    assert Authenticator({}).authenticate("") == LOCAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token"),
        ("me\n", "line 1"),
        ("me short\n", "line 1"),
        (f"{TOKEN}\n", "line 1"),
        (f"me {TOKEN}\nme {TOKEN}2\n", "line 2 .* repeats a name"),
        (f"me {TOKEN} {TOKEN}\n", "line 1"),
        (f"<me> {TOKEN}\n", "line 1"),
        (f"me {TOKEN}\nyou {TOKEN}\n", "line 2 .* repeats a token"),
        (f"local {TOKEN}\n", "the reserved name 'local'"),
        (f"retention {TOKEN}\n", "the reserved name 'retention'"),
    ],
)
def test_invalid_token_file_is_rejected_without_showing_a_token(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        read_tokens(written(tmp_path, text))
    assert TOKEN not in str(caught.value)


def test_token_file_that_others_can_read_is_rejected(tmp_path):
    with pytest.raises(UsageError, match="readable by other users"):
        read_tokens(written(tmp_path, f"me {TOKEN}\n", 0o640))


def test_missing_token_file_is_rejected(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_tokens(tmp_path / "nowhere")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_addresses(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_public_addresses(host):
    assert not is_loopback(host)
