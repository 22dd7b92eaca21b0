"""A small network, a small recipe and a few phantoms, for a complete run in seconds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import parse_recipe

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


@pytest.fixture(scope="session")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 16 phantoms as images of adults and minors of another hospital."""
    folder = tmp_path_factory.mktemp("outliers")
    rows = ["path,age,source,split"]
    for i in range(16):
        Image.fromarray(draw_phantom(900 + i, False, size=48)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{12 if i % 4 == 0 else 40},hospital,{'train' if i < 10 else 'validation'}")
    (folder / "outliers.csv").write_text("\n".join(rows))
    return folder / "outliers.csv"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of these tests in their temporary folder."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_operator_table() -> Iterator[None]:
    """Let PyTorch build its table of ONNX operators once; it builds a new one, always the same, for each export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # needs PyTorch

    build = functools.cache(ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(build))
        yield


@pytest.fixture
def without_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the last step of a run, the export of its bundle: it takes most of the time, and the test reads no bundle."""
    from pneumoscope.training import train as train_module  # needs PyTorch

    monkeypatch.setattr(train_module, "export", lambda *_, **__: None)
