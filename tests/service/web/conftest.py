"""A bundle and clients for the tests of the web interface."""

import contextlib
import io
import re
import sqlite3

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tests.conftest import LIMITS, POINTS
from tests.service.conftest import insert_token_of_service, repository_with_token, served
from tests.service.web.helpers import (
    BASE_URL,
    TOKEN,
    expect,
    expect_values,
    record_traffic,
    remove_everything,
    sign_in,
    upload,
)

from pneumoscope.bundle.card import ReferenceDistribution
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.storage.repository import PredictionRepository

SESSION_SECONDS = 4 * 3600  # after which a service that several modules share is killed


@pytest.fixture(scope="session")
def bundle_folder(shared_maker):
    """A bundle that rejects images of mean gray below 77 and has a reference distribution."""
    folder = shared_maker.root / "web"
    if not folder.exists():
        reference = ReferenceDistribution(deciles=tuple(k / 10 for k in range(1, 10)), n=100, n_pneumonia=60)
        shared_maker.bundle(
            folder, gain=0.05, operating_points=POINTS, rejection_limits=LIMITS, reference_distribution=reference
        )
    return folder


@pytest.fixture
def client(bundle_folder):
    """A client of a service without authentication."""
    app = create_app(load_model(bundle_folder, threads=1), PredictionRepository(None))
    with TestClient(app, base_url=BASE_URL) as opened:
        yield opened


@pytest.fixture
def anonymous_client(bundle_folder):
    """A client, not signed in, of a service with authentication; it does not follow redirects."""
    app = create_app(load_model(bundle_folder, threads=1), repository_with_token("ward-3"), require_token=True)
    with TestClient(app, base_url=BASE_URL, follow_redirects=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def service_folder(tmp_path_factory):
    """The working folder of the service without authentication."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="session")
def service_process(bundle_folder, service_folder):
    """A client of a real process without authentication; it starts once for all modules, because that takes seconds."""
    with served(bundle_folder, service_folder, deadline=SESSION_SECONDS) as (_, client):
        yield client


@pytest.fixture
def service(service_process):
    """The client of `service_process`, which stores no image."""
    remove_everything(service_process)
    return service_process


@pytest.fixture
def page(browser, service):
    """The worklist in Chromium; fails if a page loads anything from another host or logs an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    opened = context.new_page()
    seen = record_traffic(opened)
    opened.goto(str(service.base_url))
    yield opened
    context.close()
    assert [each for each in seen if not each.startswith((str(service.base_url), "blob:"))] == []


@pytest.fixture(scope="session")
def authenticated_process(bundle_folder, tmp_path_factory):
    """A real process with authentication: a client with the token of ward-3, and the process's working folder."""
    folder = tmp_path_factory.mktemp("authenticated")
    insert_tokens(folder)
    with served(bundle_folder, folder, deadline=SESSION_SECONDS) as (_, client):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client, folder


def insert_tokens(folder):
    insert_token_of_service(folder, "ward-3")
    insert_token_of_service(folder, "ward-4", "fedcba9876543210", id="00000002")


@pytest.fixture
def authenticated(authenticated_process):
    """The client of `authenticated_process`, which stores no image and has the tokens of ward-3 and ward-4."""
    client, folder = authenticated_process
    with contextlib.closing(sqlite3.connect(folder / "pneumoscope-data/pneumoscope.sqlite", timeout=10)) as database:
        database.execute("DELETE FROM tokens")
        database.commit()
    insert_tokens(folder)
    remove_everything(client)
    return client


@pytest.fixture
def signed_in(browser, authenticated):
    """The worklist of a service with authentication, signed in, and a client with the token; any dialog fails."""
    client = authenticated
    context = browser.new_context(locale="en-GB")
    opened = context.new_page()
    dialogs = []
    opened.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
    opened.goto(f"{client.base_url}/")
    sign_in(opened)
    yield opened, client
    context.close()
    assert dialogs == []


@pytest.fixture
def viewer(page, service):
    """The viewer of an image of 400 x 300 pixels, dark on the left and light on the right, and its id."""
    gray = np.full((300, 400), 100, np.uint8)
    gray[:, 200:] = 180
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "PNG")
    response = service.post("/v1/predictions", files=[("images", ("two.png", file.getvalue()))])
    (prediction,) = response.json()["predictions"]
    upload(service, {"other.png": 150})
    page.goto(f"{service.base_url}/")
    page.get_by_role("link", name="two.png").click()
    expect_values(page)
    expect(page.locator("#zoom")).to_have_text(re.compile(r"^(?!100%)\d+%$"))  # the script has fitted the image
    return page, prediction["id"]
