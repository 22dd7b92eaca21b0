"""The simulation of large archives agrees with closed forms where there are any."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "archive_scale.py"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("archive_scale", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["archive_scale"] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


EVEN = {"speed_spread": 0.0, "stragglers": 0.0, "node_failures": 0.0, "write_seconds": 0.0}


@pytest.mark.parametrize("shards", [1, 12, 13, 24, 1000])
def test_equal_machines_without_failures_work_in_rounds(scale: ModuleType, shards: int) -> None:
    given = scale.Scale(images=10 * shards, shard_size=10, nodes=3, cores=4, image_seconds=0.5, **EVEN)
    assert scale.simulate(given)["hours"] * 3600 == pytest.approx(math.ceil(shards / 12) * 5)


def test_a_driver_that_is_slower_than_the_cores_decides_the_time(scale: ModuleType) -> None:
    given = scale.Scale(
        images=10_000, shard_size=10, nodes=3, cores=4, image_seconds=0.01, **{**EVEN, "write_seconds": 1.0}
    )
    assert scale.simulate(given)["hours"] * 3600 == pytest.approx(1000 + 0.1)


def test_lost_tasks_are_those_of_the_failures(scale: ModuleType) -> None:
    """Each failure of a busy machine loses one task for each of its cores."""
    given = scale.Scale(
        images=4_000_000, shard_size=100, nodes=50, cores=1, image_seconds=0.05,
        **{**EVEN, "node_failures": 0.5, "restart_seconds": 1.0},
    )  # fmt: skip
    found = scale.simulate(given, seed=1)
    expected = 0.5 * 50 * found["hours"]
    assert found["tasks lost by failures"] == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert found["core hours"] > 4_000_000 * 0.05 / 3600


def test_stragglers_cost_more_with_larger_shards(scale: ModuleType) -> None:
    ends = []
    for shard_size in (100, 10_000):
        given = scale.Scale(images=1_000_000, shard_size=shard_size, nodes=10, cores=4, stragglers=0.3)
        ends.append(scale.simulate(given, seed=3)["seconds from the first idle core to the end"])
    assert ends[1] > 5 * ends[0]
