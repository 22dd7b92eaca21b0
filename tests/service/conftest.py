"""Repositories on SQLite and PostgreSQL, test images, and a running service."""

import hashlib
import json
import os
import re
import shutil
import signal
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, insert, text
from sqlalchemy.exc import DBAPIError
from tests import images as image_files
from tests.conftest import LIMITS, POINTS
from tests.openid import identity_provider
from tests.processes import free_port, started

from pneumoscope.core.interval import Interval
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import ImageInfo, ModelInfo, Prediction, Rejection, Uncertainty
from pneumoscope.core.prediction_messages import notice
from pneumoscope.inference.model import load_model
from pneumoscope.service.api.exception_handlers import PROBLEM_MEDIA_TYPE
from pneumoscope.service.app import create_app
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage import database as database_module
from pneumoscope.service.storage.data_directory import create_data_directory
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, write_transaction
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.tables import REVISION, tokens


def png(level=100, size=64):
    return image_files.png(level, size, size)


TOKEN = "0123456789abcdef"
UNPRIVILEGED = 65534  # user id
START_SECONDS = 60  # a deadline, far above what a start takes under load
SERVICE_SECONDS = 300  # after which a service is killed; above the time limit of a test
MODEL = ModelInfo("gray", "0.1.0", "ab" * 32)
AT_ONCE = DicomConfiguration(quiet_seconds=0)  # a study is predicted at once


def prediction(
    probability=0.75,
    decision="pneumonia",
    name="an image.png",
    operating_point="balanced",
    age=None,
    warnings=(),
    image_statistics=None,
):
    interval = None
    if probability is not None:
        interval = Interval(probability, probability / 2, (1 + probability) / 2, method="venn-abers", n=100, level=None)
    return Prediction(
        path=name,
        decision=decision,
        probability=probability,
        interval=interval,
        threshold=0.4,
        operating_point=operating_point,
        rejection=Rejection("blank", {"levels": 3}) if decision == "rejected" else None,
        uncertainty=Uncertainty(0.3, 0.7, 0.95) if decision == "uncertain" else None,
        age=age,
        warnings=warnings,
        image=ImageInfo(30, 20, "PNG"),
        image_statistics=image_statistics,
        model=MODEL,
    )


def insert_token(engine, user, secret=TOKEN, role="administrator", id="00000001"):
    """Insert a token whose secret is known."""
    row = {
        "id": id, "user": user, "role": role, "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "created": "2026-01-01T00:00:00.000000Z", "created_by": "command-line",
    }  # fmt: skip
    with write_transaction(engine) as connection:
        connection.execute(insert(tokens), [row])


def repository_with_token(user, role="administrator"):
    """Return an empty repository in memory with the token `TOKEN`."""
    opened = PredictionRepository(None)
    insert_token(opened.engine, user, role=role)
    return opened


def insert_token_of_service(folder, user, secret=TOKEN, role="administrator", id="00000001"):
    """Insert a token into the database of a service that `served` starts in a folder."""
    engine = open_database(folder / "pneumoscope-data")
    insert_token(engine, user, secret, role, id)
    engine.dispose()


def dicom(**elements):
    return image_files.dicom(100, 64, **elements)


def add(repository, image=b"image", **fields):
    return repository.add(prediction(**fields), image, user="me")


def _programs():
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@pytest.fixture(scope="session")
def postgresql_server():
    """The URL of a PostgreSQL server that runs for these tests only."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        # PostgreSQL does not run as root.
        user = {"user": UNPRIVILEGED} if os.getuid() == 0 else {}
        if user:
            shutil.chown(folder, UNPRIVILEGED)
        data = Path(folder) / "data"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "--auth=trust", "-N"],
            check=True, capture_output=True, timeout=START_SECONDS, env=environment, cwd=folder, **user,
        )  # fmt: skip
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        with started(
            [programs / "postgres", "-D", data, *options.split()], deadline=4 * 3600,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=folder, **user,
        ) as server:  # fmt: skip
            address = f"postgresql://tester@127.0.0.1:{port}/postgres"
            try:
                _wait_for_database(address)
                yield address
                server.send_signal(signal.SIGINT)  # fast shutdown: SIGTERM would wait for clients
                server.wait(60)
            finally:
                server.kill()


def _wait_for_database(address):
    engine = create_engine(address.replace("postgresql", "postgresql+pg8000"), connect_args={"timeout": 5})
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with engine.connect():
                break
        except DBAPIError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    engine.dispose()


@pytest.fixture(scope="session")
def issuer():
    """The address of an identity provider that runs for these tests only."""
    with identity_provider() as address:
        yield address


def create_database(server, name, template="template1"):
    """Create a database on a PostgreSQL server, in place of one of the same name, and return its URL."""
    engine = create_engine(server.replace("postgresql", "postgresql+pg8000"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return server.removesuffix("/postgres") + f"/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """The URL of a new database, which has no tables; empty for SQLite."""
    if request.param == "sqlite":
        return ""
    return create_database(request.getfixturevalue("postgresql_server"), "images")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory):
    """A SQLite file with all tables and no rows."""
    folder = tmp_path_factory.mktemp("migrated")
    open_database(folder).dispose()
    return folder / DATABASE_FILE


@pytest.fixture(scope="session")
def created_tables(migrated_sqlite):
    """The statements that create the tables, indexes and triggers of a migrated SQLite file."""
    with closing(sqlite3.connect(migrated_sqlite)) as connection:
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        return [statement for (statement,) in found]


@pytest.fixture
def migrations():
    """Create the tables of each new database by migrations, as the service does."""


@pytest.fixture(autouse=True)
def copied_tables(request, monkeypatch, created_tables):
    """Give a new SQLite database the tables that the migrations created in another one.

    Migrations take longer than most tests. A test of them uses the fixture `migrations`.
    """
    upgrade = database_module._upgrade

    def create(connection):
        if connection.dialect.name != "sqlite" or connection.dialect.get_table_names(connection):
            upgrade(connection)
            return
        for statement in created_tables:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (REVISION,))

    if "migrations" not in request.fixturenames:
        monkeypatch.setattr(database_module, "_upgrade", create)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Look more often for instances to predict, and for the end of a server: hundreds of tests wait for them."""
    monkeypatch.setattr("pneumoscope.service.dicom.processing._POLL_SECONDS", 0.05)
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))  # instead of 0.5 s


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql_server):
    """The name of a database with all tables and no rows."""
    open_database(None, create_database(postgresql_server, "migrated")).dispose()
    return "migrated"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request, tmp_path):
    """The URL of a database with all tables and no rows; empty for SQLite in `tmp_path / "data"`.

    A copy, because migrations take longer than most tests of the storage.
    """
    if request.param == "sqlite":
        create_data_directory(tmp_path / "data")
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), tmp_path / "data" / DATABASE_FILE)
        return ""
    template = request.getfixturevalue("migrated_postgresql")
    return create_database(request.getfixturevalue("postgresql_server"), "images", template)


@pytest.fixture
def repository(tmp_path, empty_database):
    opened = PredictionRepository(tmp_path / "data", empty_database)
    yield opened
    opened.close()


@pytest.fixture
def bundle(shared_maker):
    folder = shared_maker.root / "process"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05)
    return folder


@contextmanager
def served(
    bundle, folder, *options, host="127.0.0.1", within=(), program=("-m", "pneumoscope"), deadline=SERVICE_SECONDS
):
    """Start a service and yield its process and a client; the process is killed in the end.

    Args:
        within: A command that runs the service's command.
        program: How Python is started.
        deadline: Seconds after which the process is killed in any case.
    """
    command = [
        *within,
        sys.executable,
        *program,
        "serve",
        "--port",
        "0",
        "--model",
        str(bundle),
        "--host",
        host,
        "--time-zone",
        "UTC",
    ]
    # Standard error goes to a file: reading it never blocks, and writing it never blocks the service.
    with (
        tempfile.NamedTemporaryFile("a") as log,
        Path(log.name).open() as written,
        started([*command, *options], deadline=deadline, stdout=subprocess.DEVNULL, stderr=log, cwd=folder) as process,
    ):
        try:
            port = _port(process, written)
            written.seek(0)
            process.stderr = written
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield process, client
        finally:
            process.kill()


def _port(process, written):
    """Wait until a service prints its address, and return its port."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        written.seek(0)
        text = written.read()
        if found := re.search(r"^http://\S+:(\d+)  model", text, re.MULTILINE):
            return int(found[1])
        assert not ended, f"the service ended with status {process.returncode}: {text}"
        assert time.monotonic() < deadline, f"no address after {START_SECONDS} s: {text}"
        time.sleep(0.02)


def verified(folder, *options, within=()):
    """Run `audit-log verify` and return its exit status, and its JSON document or its message."""
    ran = subprocess.run(
        [*within, sys.executable, "-m", "pneumoscope", "audit-log", "verify", "--json", *options],
        capture_output=True, text=True, cwd=folder, check=False, timeout=60,
    )  # fmt: skip
    return ran.returncode, json.loads(ran.stdout) if ran.returncode == 0 else ran.stderr


@pytest.fixture(scope="session")
def child_bundle(shared_maker):
    """A bundle for patients of 1 to 5 years, which rejects images of mean gray below 77."""
    folder = shared_maker.root / "children served"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05, operating_points=POINTS, rejection_limits=LIMITS, age_range=(1, 5))
    return folder


@pytest.fixture
def model(shared_maker):
    folder = shared_maker.root / "served"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05, operating_points=POINTS, rejection_limits=LIMITS)
    return load_model(folder, threads=1)


@pytest.fixture
def app(model):
    return create_app(model, PredictionRepository(None), Settings(max_images=3, max_body_bytes=100_000, dicom=AT_ONCE))


@pytest.fixture
def client(app):
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as opened:
        yield opened


def predicted(client, count=1, path="/v1/predictions"):
    """Wait until a service has predicted a number of received images, and return its predictions, newest first."""
    deadline = time.monotonic() + START_SECONDS
    while (found := client.get(path).json())["total"] < count:
        assert time.monotonic() < deadline, f"{found['total']} of {count} after {START_SECONDS} s"
        time.sleep(0.05)
    assert found["total"] == count
    return next(value for key, value in found.items() if isinstance(value, list))


def images(*contents):
    return [("images", (f"image {place}.png", content)) for place, content in enumerate(contents)]


def post(client, *contents):
    """Upload images and return their predictions."""
    response = client.post("/v1/predictions", files=images(*contents))
    assert response.status_code == 201, response.text
    return response.json()["predictions"]


def problem(response, status, code):
    """Check that a response is a problem document, and return the document."""
    assert (response.status_code, response.headers["Content-Type"]) == (status, PROBLEM_MEDIA_TYPE)
    document = response.json()
    assert (document["status"], document["code"], document["type"]) == (status, code, f"urn:pneumoscope:error:{code}")
    assert document["detail"]
    return document


def fetch(client, id):
    """Return a prediction from the API without the notice, which must be there."""
    document = client.get(f"/v1/predictions/{id}").json()
    assert document.pop("notice") == notice(Population())
    return document
