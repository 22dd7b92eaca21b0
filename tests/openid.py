"""An identity provider on this machine (oidc-provider-mock), and a configuration for it."""

import importlib.util
import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
from tests.processes import started

USERS = {
    "1": {"preferred_username": "dr.lin", "roles": ["staff", "radiology"]},
    "2": {"preferred_username": "it.chen", "roles": ["radiology", "pneumoscope-admins"]},
    "3": {"preferred_username": "a.visitor", "roles": ["visitors"]},
    "4": {"preferred_username": "CLINIC\\lin", "roles": "radiology"},
    "5": {"preferred_username": "local", "roles": "radiology"},
    "6": {"roles": "radiology"},
    "7": {"preferred_username": "no.role", "roles": [None, 3, {"a": 1}]},
    "8": {"preferred_username": "single", "roles": "radiology"},
    "9": {
        "preferred_username": "nested",
        "realm_access": {"roles": ["radiology"]},
        "https://clinic.example/roles": ["radiology"],
    },
    "10": {"preferred_username": "no.member", "realm_access": 3},
}  # fmt: skip
PROVIDER = """
import json, sys
import oidc_provider_mock as provider
users = [provider.User(sub=sub, claims=claims) for sub, claims in json.loads(sys.argv[1]).items()]
with provider.run_server_in_thread(user_claims=users) as server:
    print(server.server_port, flush=True)
    sys.stdin.read()
"""
SECRET = "the secret of the client"


@contextmanager
def identity_provider():
    """Run the provider in its own process, and yield its address."""
    if importlib.util.find_spec("oidc_provider_mock") is None:
        pytest.skip("oidc-provider-mock is not installed")
    command = [sys.executable, "-c", PROVIDER, json.dumps(USERS)]
    with started(
        command, deadline=4 * 3600, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield f"http://localhost:{process.stdout.readline().strip()}"
        process.kill()


def write_configuration(tmp_path, issuer, *, mode=0o600, **changes):
    values = {"issuer": issuer, "client_id": "pneumoscope", "client_secret": SECRET} | changes
    lines = [f'{name} = "{value}"' for name, value in values.items() if value is not None]
    file = tmp_path / "openid.toml"
    file.write_text("\n".join([*lines, "[roles]", 'reader = "radiology"', 'administrator = "pneumoscope-admins"', ""]))
    file.chmod(mode)
    return file
