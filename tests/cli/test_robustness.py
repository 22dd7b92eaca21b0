"""`pneumoscope robustness`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.conftest import LIMITS
from tests.evaluation.acceptance.test_accept import write_site

from pneumoscope.cli import cli
from pneumoscope.cli.robustness import command
from pneumoscope.evaluation.acceptance.accept import accept


@pytest.fixture
def run(maker: Any) -> Path:
    folder: Path = maker.run(rejection_limits=LIMITS)
    (folder / "manifest.csv").write_text(maker.manifest(maker.images(split="train"), "validation"))
    return folder


def invoke(run: Path, *arguments: object) -> Result:
    images = run.parents[1] / "images"
    options = ["--data", images, "--images", 8, "--phantoms", 2, *arguments]
    return CliRunner().invoke(command, [str(run), *map(str, options)])


def test_prints_the_markdown_that_it_writes(run: Path, tmp_path: Path) -> None:
    result = invoke(run, "--out", tmp_path / "out", "--other-images", run.parents[1] / "images", "--seed", 4)

    assert result.exit_code == 0, result.output
    assert result.stdout == (tmp_path / "out" / "robustness.md").read_text()
    assert "on 8 validation images" in result.stdout
    assert "| JPEG quality 50 |" in result.stdout
    assert "| images | 32 |" in result.stdout
    images = run.parents[1] / "images"
    assert (
        f"`pneumoscope robustness {run} --data {images} --images 8 --phantoms 2 --other-images {images} --seed 4"
        f" --out {tmp_path / 'out'}`"
    ) in result.stdout
    assert result.stderr == ""


def test_json_is_one_document(run: Path) -> None:
    document = json.loads(invoke(run, "--json", "--operating-point", "rule_in").stdout)

    assert (document["n"], document["seed"], document["schema"]) == (8, 0, 1)
    assert document["operating_point"].startswith("lowest threshold with specificity 0.99")
    assert [row["name"] for row in document["other_images"]] == ["phantoms"]


def test_site_profile_decides_and_is_named(maker: Any, run: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", normal=150, pneumonia=150, shift=30)
    accept(site, run, site="North Clinic", out=tmp_path / "accepted")
    path = tmp_path / "accepted" / "site.json"
    profile = json.loads(path.read_text())

    plain, with_profile = json.loads(invoke(run, "--json").stdout), invoke(run, "--site", path, "--out", tmp_path)
    document = json.loads((tmp_path / "robustness.json").read_text())

    assert (plain["site"], document["site"]) == ("", f"North Clinic ({profile['sha256'][:8]})")
    images = profile["operating_points"]["balanced"]["n"]
    assert document["operating_point"] == f"highest Youden index on {images} images of the site"
    assert "of the site" not in plain["operating_point"]
    assert f"Site profile: North Clinic ({profile['sha256'][:8]})." in with_profile.stdout
    assert f"--site {path}" in with_profile.stdout
    assert "Site profile" not in invoke(run).stdout


def test_test_images_cannot_be_chosen(run: Path) -> None:
    result = invoke(run, "--split", "test")

    assert result.exit_code == 2
    assert "'test' is not one of 'validation', 'train'" in result.stderr


def test_originals_need_copies(run: Path) -> None:
    arguments = ["robustness", str(run), "--data", "images", "--originals", str(run)]
    result = CliRunner().invoke(cli, arguments)

    assert "--originals and --copies must be given together" in str(result.exception)
