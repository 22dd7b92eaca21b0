"""A bundle and decode workers that the tests of archives share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import LIMITS, Maker

from pneumoscope.imaging.sandbox import pool as pool_module

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra [archive])")


@pytest.fixture(scope="session")
def bundle(shared_maker: Maker) -> Path:
    """A bundle with rejections and a reference distribution."""
    return shared_maker.bundle(shared_maker.root / "archive-bundle", rejection_limits=LIMITS)


class KeptPool(pool_module.DecodePool):
    """A pool that stays open when a run closes it."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def kept_pool() -> Iterator[KeptPool]:
    pool = KeptPool()
    yield pool
    pool_module.DecodePool.close(pool)


@pytest.fixture(scope="module", autouse=True)
def shared_decode_workers(kept_pool: KeptPool) -> Iterator[None]:
    """Decode in the same workers in all runs of this process: to start them takes most of the time of a run of a few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "DecodePool", lambda: kept_pool)
        yield
