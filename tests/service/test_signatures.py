"""Signatures of webhooks and responses, verified by the libraries of their specifications."""

import base64
import hashlib
import hmac
import time

import pytest

from pneumoscope.core.errors import UsageError
from pneumoscope.service.signatures import read_secret, response_headers, webhook_headers

SECRET = bytes(range(32))
TEXT = f"whsec_{base64.b64encode(SECRET).decode()}"


def secret_file(folder, text=TEXT, mode=0o600):
    file = folder / "secret"
    file.write_text(f"{text}\n")
    file.chmod(mode)
    return file


def test_secret_is_read_as_standard_webhooks_writes_it(tmp_path):
    assert read_secret(secret_file(tmp_path)) == SECRET


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (TEXT, 0o644, "readable by other users"),
        (TEXT.removeprefix("whsec_"), 0o600, "has no 'whsec_'"),
        ("whsec_" + base64.b64encode(b"short").decode(), 0o600, "at least 24 bytes"),
        ("whsec_not base64", 0o600, "has no 'whsec_'"),
        ("whsec_ä", 0o600, "has no 'whsec_'"),
    ],
)
def test_unsafe_secret_is_rejected(tmp_path, text, mode, words):
    with pytest.raises(UsageError, match=words) as caught:
        read_secret(secret_file(tmp_path, text, mode))
    assert "AAEC" not in str(caught.value)


def test_missing_secret_is_rejected_with_a_command_that_creates_one(tmp_path):
    with pytest.raises(UsageError, match="cannot read") as caught:
        read_secret(tmp_path / "nowhere")
    assert "openssl rand" in caught.value.hint


def test_webhook_headers_are_the_hmac_of_id_time_and_body():
    headers = webhook_headers(SECRET, "an-id", 1_700_000_000, b'{"a": 1}')
    expected = base64.b64encode(hmac.new(SECRET, b'an-id.1700000000.{"a": 1}', hashlib.sha256).digest()).decode()
    assert headers == {
        "Webhook-Id": "an-id", "Webhook-Timestamp": "1700000000", "Webhook-Signature": f"v1,{expected}"
    }  # fmt: skip


@pytest.mark.parametrize("change", ["nothing", "body", "id", "timestamp", "age"])
def test_standard_webhooks_accepts_exactly_what_was_signed(change):
    standardwebhooks = pytest.importorskip("standardwebhooks")
    body, now = b'{"type": "study.finished"}', int(time.time())
    headers = webhook_headers(SECRET, "an-id", now - 3600 if change == "age" else now, body)
    if change == "body":
        body = body.replace(b"finished", b"deleted")
    if change == "id":
        headers["Webhook-Id"] = "another-id"
    if change == "timestamp":
        headers["Webhook-Timestamp"] = str(now + 1)
    webhook = standardwebhooks.Webhook(TEXT)
    if change == "nothing":
        assert webhook.verify(body, headers) == {"type": "study.finished"}
    else:
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            webhook.verify(body, headers)


def test_response_headers_are_those_of_rfc_9421():
    """The signature base is written by hand as section 2.5 says."""
    headers = response_headers(SECRET, 200, {"etag": '"x"'}, b"{}", 1_700_000_000)
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(b'{}').digest()).decode()}:"
    parameters = '("@status" "etag" "content-digest");created=1700000000;keyid="pneumoscope";alg="hmac-sha256"'
    base = f'"@status": 200\n"etag": "x"\n"content-digest": {digest}\n"@signature-params": {parameters}'
    signature = base64.b64encode(hmac.new(SECRET, base.encode(), hashlib.sha256).digest()).decode()
    assert headers == {
        "Content-Digest": digest,
        "Signature-Input": f"pneumoscope={parameters}",
        "Signature": f"pneumoscope=:{signature}:",
    }
