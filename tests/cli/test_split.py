"""`pneumoscope split`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pneumoscope.cli.split import command
from pneumoscope.core.errors import DatasetError, LayoutError, UsageError
from pneumoscope.data.layouts import load_manifest


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def _draw(path: Path) -> None:
    """Write an image that differs from all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (8, 4))
    image.putdata(list(hashlib.sha256(str(path.parts[-2:]).encode()).digest()))
    image.save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number in range(20):
        for image in range(1 + number % 2):
            _draw(root / "train" / "NORMAL" / f"IM-{number:04}-000{image + 1}.png")
            _draw(root / "train" / "PNEUMONIA" / f"person{number}_virus_{image}.png")
    _draw(root / "test" / "NORMAL" / "IM-0100-0001.png")
    _draw(root / "test" / "PNEUMONIA" / "person100_virus_1.png")
    return root


def test_manifest_is_written_and_its_counts_are_printed(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "images.csv"
    result = invoke(images, "--out", out)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["split", "NORMAL", "PNEUMONIA", "patients"]
    manifest = load_manifest(out)
    assert manifest.split_by == "patient"
    for name, normal, pneumonia, patients in rows[1:4]:
        assert manifest.counts()[name] == {"NORMAL": int(normal), "PNEUMONIA": int(pneumonia)}
        assert len({image.patient for image in manifest.split(name)}) == int(patients)
    assert result.stdout.splitlines()[-1] == f"split by patient, seed 0: {out}"
    assert result.stderr == ""
    assert len(manifest.split("validation")) == 9
    assert manifest.leaks() == {}


def test_options_reach_the_split(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.csv"
    assert invoke(images, "--out", out, "--by", "image", "--validation", "0.3", "--seed", "4").exit_code == 0
    manifest = load_manifest(out)
    assert manifest.split_by == "image"
    assert len(manifest.split("validation")) == 18
    first = out.read_text()
    assert invoke(images, "--out", out, "--by", "image", "--validation", "0.3", "--seed", "5", "--force").exit_code == 0
    assert out.read_text() != first


def test_other_manifest_is_replaced_only_by_force(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.csv"
    assert invoke(images, "--out", out).exit_code == 0
    first = out.read_bytes()

    result = invoke(images, "--out", out, "--seed", "1")

    assert isinstance(result.exception, UsageError)
    assert result.exception.message == f"{str(out)!r} exists with other content, and runs may depend on it"
    assert "--force" in result.exception.hint
    assert out.read_bytes() == first
    assert invoke(images, "--out", out).exit_code == 0  # the same content
    assert invoke(images, "--out", out, "--seed", "1", "--force").exit_code == 0
    assert out.read_bytes() != first


def test_notes_are_printed_to_standard_error(tmp_path: Path) -> None:
    for number in range(20):
        _draw(tmp_path / "images" / "NORMAL" / f"{number}.png")
        _draw(tmp_path / "images" / "PNEUMONIA" / f"{number}.png")
    (tmp_path / "images" / "NORMAL" / "x.txt").touch()
    result = invoke(tmp_path / "images", "--out", tmp_path / "images.csv", "--test", "0.2")
    assert result.exit_code == 0
    assert "note: the patient of 40 of 40 images is unknown" in result.stderr
    assert "note: split 40 images without a known patient as if each were a patient" in result.stderr
    assert "note: skipped 1 other file (NORMAL/x.txt); for details: pneumoscope check-data DATA" in result.stderr
    assert "note:" not in result.stdout
    assert len(load_manifest(tmp_path / "images.csv").split("test")) == 8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--test", "0.2"], UsageError, "the data already has one"),
        (["--validation", "2"], UsageError, "validation is 2.0; it must be a fraction between 0 and 1"),
        (["--validation", "0.001"], DatasetError, "the validation split would have 0 NORMAL, 0 PNEUMONIA"),
    ],
)
def test_impossible_split_writes_nothing(
    images: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    result = invoke(images, "--out", tmp_path / "images.csv", *arguments)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert not (tmp_path / "images.csv").exists()


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    result = invoke(tmp_path / "nowhere", "--out", tmp_path / "images.csv")
    assert isinstance(result.exception, LayoutError)
    assert "nowhere" in str(result.exception)


def test_manifest_can_be_split_again(images: Path, tmp_path: Path) -> None:
    invoke(images, "--out", tmp_path / "one.csv", "--by", "image")
    assert invoke(tmp_path / "one.csv", "--out", tmp_path / "two.csv").exit_code == 0
    invoke(images, "--out", tmp_path / "direct.csv")
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "direct.csv").read_text()
