"""`pneumoscope robustness`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.conftest import LIMITS

from pneumoscope.cli import cli
from pneumoscope.cli.robustness import command


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


def test_test_images_cannot_be_chosen(run: Path) -> None:
    result = invoke(run, "--split", "test")

    assert result.exit_code == 2
    assert "'test' is not one of 'validation', 'train'" in result.stderr


def test_originals_need_copies(run: Path) -> None:
    arguments = ["robustness", str(run), "--data", "images", "--originals", str(run)]
    result = CliRunner().invoke(cli, arguments)

    assert "--originals and --copies must be given together" in str(result.exception)
