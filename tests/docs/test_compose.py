"""The file for containers in docs: its syntax, its references, and the options that it passes to the service."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.cli.serve import command

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (the extra [docs])")
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docs" / "how-to" / "compose.yaml"
# Of https://docs.docker.com/reference/compose-file/, as far as the file uses it.
SERVICE_KEYS = {"build", "command", "configs", "ports", "restart", "stop_grace_period", "volumes"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return document


def serve_options() -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def test_file_has_the_keys_of_compose_and_defines_what_services_use(compose: dict[str, Any]) -> None:
    assert set(compose) == {"services", "configs", "volumes"}
    assert set(compose["services"]) == {"orthanc", "pneumoscope"}
    for service in compose["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert {config["source"] for config in service["configs"]} <= set(compose["configs"])
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])
        assert re.search(r"^ENTRYPOINT ", service["build"]["dockerfile_inline"], re.MULTILINE)
    used = {config["source"] for service in compose["services"].values() for config in service["configs"]}
    assert used == set(compose["configs"])


def test_options_of_the_service_exist(compose: dict[str, Any]) -> None:
    verb, *options = compose["services"]["pneumoscope"]["command"]
    assert verb == command.name
    names = {option.partition("=")[0] for option in options}
    assert len(names) == len(options) > 3
    assert names <= serve_options()


def test_installed_extras_exist(compose: dict[str, Any]) -> None:
    (names,) = re.findall(r"/source\[(.*?)\]", compose["services"]["pneumoscope"]["build"]["dockerfile_inline"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(names.split(",")) <= set(project["optional-dependencies"])


def test_files_are_those_of_the_page_and_reach_the_options(compose: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "how-to" / "orthanc.md").read_text(encoding="utf-8")
    files = {config["file"] for config in compose["configs"].values()}
    assert files <= set(re.findall(r'^```\w+ title="(\S+)"$', page, re.MULTILINE))
    service = compose["services"]["pneumoscope"]
    (target,) = (config["target"] for config in service["configs"])
    assert f"--dicom-config={target}" in service["command"]
    folder = service["volumes"][0].partition(":")[2]
    assert f"--data-dir={folder}" in service["command"]


def test_web_pages_are_published_on_the_loopback_address_only(compose: dict[str, Any]) -> None:
    for name, port in (("orthanc", "8042"), ("pneumoscope", "8000")):
        published = [each for each in compose["services"][name]["ports"] if each.endswith(f":{port}")]
        assert [each.startswith("127.0.0.1:") for each in published] == [True]
