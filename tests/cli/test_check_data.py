"""`pneumoscope check-data`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pneumoscope.cli.check_data import command
from pneumoscope.core.errors import LayoutError, StorageError


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six patients a label, a copy under another name, a file that is no image, and names that try to be markup."""
    root = tmp_path / "images"
    for number in range(6):
        for label, name in (("NORMAL", f"IM-{number:04}-0001.png"), ("PNEUMONIA", f"person{number}_virus_1.png")):
            noise = np.random.default_rng([number, len(label)]).integers(0, 256, (9, 9), dtype=np.uint8)
            (root / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).resize((48, 40)).save(root / label / name)
    copy = (root / "NORMAL" / "IM-0000-0001.png").read_bytes()
    (root / "NORMAL" / "[bold]<img src=x>[&slash].png").write_bytes(copy)
    (root / "NORMAL" / "[red]broken[&slash].png").write_text("no image")
    return root


def test_prints_tables(images: Path) -> None:
    result = _run(images)
    assert result.exit_code == 0, result.output
    lines = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    assert ["all", "7", "6", "0", "6", "12"] in lines
    assert ["groups", "of", "byte-identical", "images", "1"] in lines
    assert ["files", "left", "out", "1"] in lines
    assert "[red]broken[&slash].png" in result.stdout
    assert "Shortcuts" in result.stdout
    assert result.stderr == ""


def test_json_is_one_document_and_nothing_else(images: Path) -> None:
    result = _run(images, "--json", "--seed", "3")
    document = json.loads(result.stdout)
    assert document["images"] == {"all": {"NORMAL": 7, "PNEUMONIA": 6}}
    assert document["unreadable"] == [{"path": "NORMAL/[red]broken[&slash].png", "reason": "not an image (8 bytes)"}]
    assert {interval["seed"] for interval in document["shortcuts"].values()} == {3}
    assert document["notice"].startswith("Research and education software")


def test_html_is_written_beside_the_answer(images: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "audit.html"
    result = _run(images, "--json", "--html", page)
    assert json.loads(result.stdout)["exact_duplicate_groups"] == 1
    assert result.stderr == f"page written to {page}\n"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "Audit of 13 images" in text


def test_a_page_that_cannot_be_written_is_an_error(images: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    result = _run(images, "--html", tmp_path / "taken" / "audit.html")
    assert isinstance(result.exception, StorageError)


def test_a_missing_folder_passes_through(tmp_path: Path) -> None:
    result = _run(tmp_path / "nowhere")
    assert isinstance(result.exception, LayoutError)
    assert "nowhere" in str(result.exception)
