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


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six patients per label, a copy under another name, an unreadable file, and names that contain markup."""
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


def test_tables_have_counts_findings_and_shortcuts(images: Path) -> None:
    result = invoke(images)
    assert result.exit_code == 0, result.output
    lines = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    assert ["all", "7", "6", "0", "6", "12"] in lines
    assert ["groups", "of", "byte-identical", "images", "1"] in lines
    assert ["skipped", "files", "1"] in lines
    assert "[red]broken[&slash].png" in result.stdout
    assert "Shortcuts" in result.stdout
    assert result.stderr == ""


def test_other_classes_have_no_columns_of_etiologies(images: Path) -> None:
    for label, name in (("NORMAL", "covid[x]"), ("PNEUMONIA", "[red]tb")):
        (images / label).rename(images / name)
    result = invoke(images)
    assert result.exit_code == 0, result.output
    (heading,) = (
        line for line in result.stdout.splitlines() if "covid" in line and "tb" in line and "patients" in line
    )
    assert sorted(heading.replace("┃", " ").split()) == ["[red]tb", "covid[x]", "patients", "split"]


def test_json_is_one_document(images: Path) -> None:
    document = json.loads(invoke(images, "--json", "--seed", "3").stdout)
    assert document["images"] == {"all": {"NORMAL": 7, "PNEUMONIA": 6}}
    assert document["unreadable"] == [{"path": "NORMAL/[red]broken[&slash].png", "reason": "not an image (8 bytes)"}]
    assert {interval["seed"] for interval in document["shortcuts"].values()} == {3}
    assert document["notice"].startswith("Research and education software")


def test_html_page_is_written_in_addition(images: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "audit.html"
    result = invoke(images, "--json", "--html", page)
    assert json.loads(result.stdout)["exact_duplicate_groups"] == 1
    assert result.stderr == f"Wrote {page}\n"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "13 images" in text


def test_unwritable_page_is_an_error(images: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    result = invoke(images, "--html", tmp_path / "taken" / "audit.html")
    assert isinstance(result.exception, StorageError)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    result = invoke(tmp_path / "nowhere")
    assert isinstance(result.exception, LayoutError)
    assert "nowhere" in str(result.exception)
