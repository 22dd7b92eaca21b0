"""A bundle that the tests of archives share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import LIMITS, Maker

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra [archive])")


@pytest.fixture(scope="session")
def bundle(shared_maker: Maker) -> Path:
    """A bundle with rejections and a reference distribution."""
    return shared_maker.bundle(shared_maker.root / "archive-bundle", rejection_limits=LIMITS)
