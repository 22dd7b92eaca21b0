"""A small network, a small recipe and a few phantoms, for a complete run in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumoscope.imaging.phantom import write_phantoms
from pneumoscope.runs.recipe import Recipe, parse_recipe

SMALL = {
    "name": "small",
    "network": {"name": "test_efficientnet", "image_size": 32, "dropout": 0.1},
    "data": {"by": "patient", "validation": 0.25},
    "optimizer": {"name": "adam", "learning_rate": 0.002},
    "training": {"epochs": 2, "batch": 8, "seed": 3},
}


def small(**tables: dict[str, object]) -> Recipe:
    """Return the small recipe with single fields changed, such as small(training={"epochs": 1})."""
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    for table, fields in tables.items():
        data[table] = {**data.get(table, {}), **fields} if isinstance(fields, dict) else fields
    return parse_recipe(data, "test")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training phantoms and 20 test phantoms, 48 pixels."""
    folder = tmp_path_factory.mktemp("phantoms") / "images"
    write_phantoms(folder, train=60, test=20, seed=1, size=48)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of these tests in their temporary folder."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(folder))
    return folder
