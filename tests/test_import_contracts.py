"""Every module of the service is in a layer of its import contract, which `make check` verifies."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "src" / "pneumoscope" / "service"
CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
}
# import-linter requires that the children of a container are placed, but not those of the packages among them.
PACKAGES = CONTRACTS["Layers of the service"]["exhaustive_ignores"]


def unplaced(package: str, modules: list[str]) -> list[str]:
    """Return the modules of a package that are in no layer."""
    layers = CONTRACTS["Layers of the service"]["layers"]
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    return [name for name in modules if f"{package}.{name}" not in placed]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_of_the_service_is_in_a_layer(package: str) -> None:
    children = [
        path for path in (SERVICE / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    modules = sorted({path.stem for path in children} - {"__init__"})
    assert modules
    assert unplaced(package, modules) == []


def test_a_new_module_is_not_in_a_layer() -> None:
    assert unplaced("dicom", ["receiver", "new_module"]) == ["new_module"]


@pytest.mark.parametrize("name", ["Layers of core", "Layers of the service"])
def test_new_children_of_a_container_must_be_placed(name: str) -> None:
    assert CONTRACTS[name]["exhaustive"] is True
    assert CONTRACTS[name]["containers"]
