"""Certificates for TLS between two programs."""

import shutil
import subprocess

import pytest

DEADLINE = 60


def make_certificates(folder):
    """Write certificates of a service and of Orthanc, which one authority signs."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed (Debian's package openssl)")

    def run(*arguments):
        subprocess.run([openssl, *arguments], check=True, capture_output=True, timeout=DEADLINE, cwd=folder)

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
        "-subj", "/CN=authority")  # fmt: skip
    for name in ("server", "orthanc"):
        run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-out", f"{name}.pem")  # fmt: skip
    return folder
