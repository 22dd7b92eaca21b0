"""`pneumoscope phantom`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pneumoscope.cli.phantom import command
from pneumoscope.core.errors import UsageError


def test_prints_the_number_of_images(tmp_path: Path) -> None:
    target = tmp_path / "phantoms"
    result = CliRunner().invoke(command, [str(target), "--train", "5", "--test", "3", "--seed", "2", "--size", "40"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("train: 2 NORMAL, 3 PNEUMONIA, ")
    assert lines[1].startswith("test: 1 NORMAL, 2 PNEUMONIA, ")
    assert lines[2] == f"Wrote synthetic images to {target}"
    assert result.stderr == ""
    images = sorted(target.rglob("*.jpeg"))
    assert len(images) == 8
    with Image.open(images[0]) as image:
        assert image.size == (40, 40)
    assert "seed 2" in (target / "PHANTOMS.txt").read_text(encoding="utf-8")


def test_json_is_one_document(tmp_path: Path) -> None:
    target = tmp_path / "phantoms"
    result = CliRunner().invoke(command, [str(target), "--train", "2", "--test", "2", "--size", "32", "--json"])
    summary = json.loads(result.stdout)
    assert summary["folder"] == str(target)
    assert summary["images"] == {split: {"NORMAL": 1, "PNEUMONIA": 1} for split in ("train", "test")}
    assert summary["patients"] == {"train": 2, "test": 2}
    assert summary["schema"] == 1


def test_nonempty_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "image.jpeg").write_bytes(b"a real image")
    with pytest.raises(UsageError, match="is not empty"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)


def test_help_lists_every_option() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for option in ("DIR", "--train", "--test", "--seed", "--size", "--json"):
        assert option in text


def test_masks_are_written_and_named(tmp_path: Path) -> None:
    options = ["--train", "4", "--test", "2", "--size", "32", "--masks", str(tmp_path / "masks")]
    result = CliRunner().invoke(command, [str(tmp_path / "images"), *options])

    assert result.exit_code == 0, result.output
    assert f"Wrote masks of the opacities to {tmp_path / 'masks'}" in result.output
    assert len(list((tmp_path / "masks").rglob("*.png"))) == len(list((tmp_path / "images").glob("*/PNEUMONIA/*")))
