"""`pneumoscope split`."""

from __future__ import annotations

import csv
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


def _table(images: Path, file: Path, header: str, *cells: str) -> Path:
    """Write a CSV file of the images with more cells in each row; # is the number of the row."""
    rows = [f"path,label,{header}"]
    for number, image in enumerate(load_manifest(images).images):
        rows.append(f"{images / image.path},{image.label},{','.join(cells).replace('#', str(number))}")
    file.write_text("\n".join(rows), encoding="utf-8-sig")
    return file


def _columns(file: Path) -> dict[str, list[str]]:
    with file.open(newline="") as opened:
        header, *rows = csv.reader(opened)
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def test_other_columns_of_a_csv_file_are_kept(images: Path, tmp_path: Path) -> None:
    data = _table(images, tmp_path / "mine.csv", "sex,Ward, site", "F-#", '"A, #"', "")
    out = tmp_path / "new" / "images.csv"
    result = invoke(data, "--out", out)
    assert result.exit_code == 0, result.output
    assert "not kept" not in result.stderr
    n = len(load_manifest(out).images)
    columns = _columns(out)
    assert columns["sex"] == [f"F-{i}" for i in range(n)]
    assert columns["Ward"] == [f"A, {i}" for i in range(n)]
    assert columns[" site"] == [""] * n
    # Again, from the manifest itself.
    again = tmp_path / "again.csv"
    assert invoke(out, "--out", again).exit_code == 0
    assert _columns(again).keys() == columns.keys()
    assert _columns(again)["Ward"] == columns["Ward"]


def test_column_that_a_manifest_states_itself_is_named_if_it_is_not_kept(images: Path, tmp_path: Path) -> None:
    data = _table(images, tmp_path / "mine.csv", "finding,pid,person,site", "#", "Q-#", "P-#", "A")
    lines = data.read_text(encoding="utf-8-sig").splitlines()
    finding = ["finding", *("mass" if "IM-" in line else "virus" for line in lines[1:])]
    rows = [line.split(",") for line in lines]
    data.write_text("\n".join(",".join([*row[:2], new, *row[3:]]) for row, new in zip(rows, finding, strict=True)))
    out = tmp_path / "images.csv"
    options = ("--label-column", "finding", "--positive", "virus", "--patient-column", "person")
    result = invoke(data, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert (
        f"note: columns of {data} that were not copied, because the manifest has its own for labels and patients: 'label', 'pid'"
        in (result.stderr)
    )
    columns = _columns(out)
    assert columns["finding"] == finding[1:]
    assert columns["patient"][1] == "P-1"
    assert {"person", "pid"}.isdisjoint(columns)  # the manifest has the person as the patient
    assert {image.label for image in load_manifest(out)} == {"NORMAL", "PNEUMONIA"}
