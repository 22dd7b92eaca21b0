"""Who may ask: tokens of a file that nobody else can read, and addresses that only this machine reaches."""

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


def test_tokens_are_read_with_the_names_of_their_holders(tmp_path):
    file = written(tmp_path, f"# who may ask\n\nward-3 {TOKEN}\nme@home   {TOKEN}2\n")
    access = Authenticator(read_tokens(file))
    assert access.who(TOKEN) == "ward-3"
    assert access.who(f" {TOKEN}2") == "me@home"
    for wrong in ("", f"{TOKEN}3", TOKEN[:-1], "é" * 9, "\udcff"):
        with pytest.raises(AuthenticationError):
            access.who(wrong)


def test_every_token_is_compared_in_constant_time_whichever_is_given(monkeypatch):
    """That `hmac.compare_digest` takes as long for any two of the same length is its own promise."""
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda given, own: compared.append(own) or compare(given, own))
    access = Authenticator({"ward-3": TOKEN, "ward-4": TOKEN + "4", "ward-5": TOKEN + "5"})
    for token in (TOKEN, TOKEN + "5", "wrong"):
        compared.clear()
        with contextlib.suppress(AuthenticationError):
            access.who(token)
        assert compared == [TOKEN.encode(), f"{TOKEN}4".encode(), f"{TOKEN}5".encode()]


def test_without_tokens_everybody_is_local():
    assert Authenticator({}).who("") == LOCAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token"),
        ("me\n", "line 1"),
        ("me short\n", "line 1"),
        (f"{TOKEN}\n", "line 1"),
        (f"me {TOKEN}\nme {TOKEN}2\n", "line 2"),
        (f"me {TOKEN} {TOKEN}\n", "line 1"),
        (f"<me> {TOKEN}\n", "line 1"),
        (f"me {TOKEN}\nyou {TOKEN}\n", "line 2 .* a token that stands there already"),
        (f"local {TOKEN}\n", "the name 'local', which is ours"),
        (f"retention {TOKEN}\n", "the name 'retention', which is ours"),
    ],
)
def test_a_file_without_names_and_tokens_is_refused_and_no_token_shown(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        read_tokens(written(tmp_path, text))
    assert TOKEN not in str(caught.value)


def test_a_file_that_others_may_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match="others may read"):
        read_tokens(written(tmp_path, f"me {TOKEN}\n", 0o640))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_tokens(tmp_path / "nowhere")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_what_only_this_machine_reaches(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_what_others_may_reach(host):
    assert not is_loopback(host)
