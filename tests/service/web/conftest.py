"""Bundles and applications that the page is tested with."""

import pytest
from fastapi.testclient import TestClient
from tests.conftest import LIMITS, POINTS

from pneumoscope.bundle.card import ReferenceDistribution
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import make_app
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.storage.repository import PredictionRepository

TOKEN = "0123456789abcdef"
BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def paged(shared_maker):
    """A bundle that rejects images below grey 77 and knows how its own were spread."""
    folder = shared_maker.root / "paged"
    if not folder.exists():
        spread = ReferenceDistribution(deciles=tuple(k / 10 for k in range(1, 10)), n=100, n_pneumonia=60)
        shared_maker.bundle(
            folder, gain=0.05, operating_points=POINTS, rejection_limits=LIMITS, reference_distribution=spread
        )
    return folder


@pytest.fixture
def client(paged):
    """Somebody on this machine, of whom no token is asked."""
    with TestClient(
        make_app(load_model(paged, threads=1), PredictionRepository(None), Authenticator({})), base_url=BASE
    ) as opened:
        yield opened


@pytest.fixture
def stranger(paged):
    """Somebody who has not signed in where a token is asked for; nothing is followed by itself."""
    app = make_app(load_model(paged, threads=1), PredictionRepository(None), Authenticator({"ward-3": TOKEN}))
    with TestClient(app, base_url=BASE, follow_redirects=False) as opened:
        yield opened
