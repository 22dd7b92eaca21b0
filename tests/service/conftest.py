"""Records on both databases where PostgreSQL is at hand, and films that a service can be given."""

import io
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from pneumoscope.service.records import Records


def png(level=100, size=64):
    """A film of the small bundle's, told apart by its grey."""
    grey = np.full((size, size), level - 8, np.uint8)
    grey[:, size // 2 :] += 16
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def _programs():
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@pytest.fixture(scope="session")
def postgresql_server():
    """The address of a PostgreSQL that runs for these tests alone."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        # It refuses to run as root.
        user = {"user": "nobody"} if os.getuid() == 0 else {}
        if user:
            shutil.chown(folder, "nobody")
        data = Path(folder) / "data"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "--auth=trust", "-N"],
            check=True, capture_output=True, env=environment, cwd=folder, **user,
        )  # fmt: skip
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        with subprocess.Popen(
            [programs / "postgres", "-D", data, *options.split()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=folder, **user,
        ) as server:  # fmt: skip
            address = f"postgresql://tester@127.0.0.1:{port}/postgres"
            _wait(address)
            yield address
            server.send_signal(signal.SIGINT)  # waits for no client, as SIGTERM would


def _wait(address):
    engine = create_engine(address.replace("postgresql", "postgresql+pg8000"))
    for _ in range(100):
        try:
            with engine.connect():
                break
        except DBAPIError:
            time.sleep(0.1)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """The address of an empty database; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgresql_server")
    engine = create_engine(server.replace("postgresql", "postgresql+pg8000"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS films"))
        connection.execute(text("CREATE DATABASE films"))
    yield server.removesuffix("/postgres") + "/films"
    engine.dispose()


@pytest.fixture
def records(tmp_path, database):
    opened = Records(tmp_path / "data", database)
    yield opened
    opened.close()
