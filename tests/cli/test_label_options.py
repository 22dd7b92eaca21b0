"""Options for the names of another data set: columns, labels, classes and patients."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result

from pneumoscope.cli import VERBS, cli
from pneumoscope.core.errors import LayoutError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.runs.evaluations import read_evaluation

if TYPE_CHECKING:
    from tests.conftest import Maker

# Commands that read any labeled images; `reproduce` reads the public ones.
COMMANDS = {
    *("accept", "check-data", "compare", "evaluate", "lr-find", "robustness", "saliency-check", "shortcuts", "split"),
    *("sweep", "train"),
}
FLAGS = (
    *(
        "--label-column",
        "--path-column",
        "--patient-column",
        "--patient-pattern",
        "--patients-from",
        "--positive",
        "--map",
    ),
    "--classes",
)


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def _hospital(root: Path) -> Path:
    """Return phantoms in folders with the names of another hospital; files are named after their patients."""
    write_phantoms(root / "phantoms", train=60, test=8, size=32)
    for folder, name in (("NORMAL", "No Finding"), ("PNEUMONIA", "Pneumonia")):
        for number, image in enumerate(sorted((root / "phantoms" / "train" / folder).iterdir())):
            target = root / "hospital" / name / f"{folder[0]}{number // 2}-{number}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    return root / "hospital"


def test_every_command_on_labeled_images_has_the_options() -> None:
    found = {}
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        found[verb] = {option for parameter in command.params for option in parameter.opts}
    assert {verb for verb, options in found.items() if set(FLAGS) <= options} == COMMANDS
    assert {verb for verb, options in found.items() if options & {"--data", "data"}} == COMMANDS | {"reproduce"}


def test_split_reads_the_names_and_writes_a_manifest_that_needs_no_options(tmp_path: Path) -> None:
    data = _hospital(tmp_path)
    out = tmp_path / "m.csv"
    result = _invoke("split", data, "--out", out, "--positive", "pneumonia", "--patient-pattern", r"([NP]\d+)-")
    assert result.exit_code == 0, result.output
    assert "'Pneumonia' (given as 'pneumonia') counts as PNEUMONIA (" in result.stderr
    manifest = load_manifest(out)
    assert manifest.binary
    assert manifest.leaks() == {}
    assert {image.patient for image in manifest} == {path.name.split("-")[0] for path in data.rglob("*.jpeg")}


def test_split_prints_the_classes(tmp_path: Path) -> None:
    data = _hospital(tmp_path)
    result = _invoke(
        *("split", data, "--out", tmp_path / "m.csv", "--map", "No Finding = clear", "--classes", "Pneumonia, clear"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[:4] == ["split", "Pneumonia", "clear", "patients"]
    assert (
        "the data have 2 classes: Pneumonia, clear. A model of these has no operating points; for a model"
        in result.stderr
    )
    rows = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))
    assert {row["classes"] for row in rows} == {"Pneumonia|clear"}


def test_check_data_counts_the_classes(tmp_path: Path) -> None:
    data = _hospital(tmp_path)
    result = _invoke("check-data", data, "--positive", "Pneumonia", "--patients-from", "header", "--json")
    assert result.exit_code == 0, result.output
    normal = len(list((data / "No Finding").iterdir()))
    assert json.loads(result.stdout)["images"]["all"]["NORMAL"] == normal > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--map", "No Finding"), "--map 'No Finding' is not SOURCE=CLASS"),
        (("--map", "=NORMAL"), "a label or class to rename is empty"),
        (("--patient-column", "a", "--patients-from", "folder"), "both --patient-column and --patients-from are given"),
    ],
)
def test_invalid_option_is_an_error(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = _invoke("split", tmp_path, "--out", tmp_path / "m.csv", *options)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_label_with_an_equals_sign_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.png,x=1\n")
    result = _invoke("split", tmp_path / "t.csv", "--out", tmp_path / "m.csv", "--map", "x=1=NORMAL")
    assert isinstance(result.exception, LayoutError)  # a.png is missing, and its label is known
    assert "no image can be read" in str(result.exception)


# --- evaluation ------------------------------------------------------------------------------------------------------


def _table(maker: Maker, file: Path) -> Path:
    """Write the test images of a maker as a table with the names of another hospital."""
    images = maker.images()
    lines = ["Image Index,Finding,MRN,Sex,Probability"]
    for number, image in enumerate(load_manifest(images).split("test")):
        finding, score = ("Pneumonia", 0.8) if image.positive else ("No Finding", 0.3)
        lines.append(f"{images.name}/{image.path},{finding},{number},{'FM'[number % 2]},{score + number / 1000}")
    file.write_text("\n".join(lines) + "\n")
    return file


NAMES = (
    *(
        "--path-column",
        "Image Index",
        "--label-column",
        "Finding",
        "--positive",
        "Pneumonia",
        "--patient-column",
        "MRN",
    ),
    *("--split", "all"),
)


def test_evaluation_reads_other_names_and_subgroups(maker: Maker) -> None:
    table = _table(maker, maker.root / "table.csv")
    out = maker.root / "out"
    result = _invoke(
        "evaluate", maker.bundle(maker.root / "bundle"), "--data", table, *NAMES, "--by", "Sex", "--out", out
    )
    assert result.exit_code == 0, result.output
    found = read_evaluation(out / "evaluation.json")
    assert found.counts == {"NORMAL": 12, "PNEUMONIA": 20}
    assert {group.value for group in found.subgroups} == {"F", "M"}


def test_predictions_and_images_can_be_in_one_table(maker: Maker) -> None:
    table = _table(maker, maker.root / "table.csv")
    result = _invoke(
        *("evaluate", "--predictions", table, "--data", table, *NAMES, "--probability-column", "Probability"),
        *("--by", "Sex", "--out", maker.root / "out"),
    )
    assert result.exit_code == 0, result.output
    assert read_evaluation(maker.root / "out" / "evaluation.json").metrics["auroc"].value == 1


@pytest.mark.slow
def test_comparison_reads_other_names(maker: Maker) -> None:
    table = _table(maker, maker.root / "table.csv")
    result = _invoke(
        *("compare", maker.bundle(maker.root / "bundle"), table, "--data", table, *NAMES),
        *("--probability-column", "Probability", "--out", maker.root / "comparison"),
    )
    assert result.exit_code == 0, result.output
    assert "AUROC" in result.stdout


def test_acceptance_test_reads_other_names(maker: Maker) -> None:
    table = _table(maker, maker.root / "table.csv")
    result = _invoke(
        *("accept", table, "--model", maker.bundle(maker.root / "bundle"), *NAMES[:-2]),
        *("--site-name", "Clinic", "--out", maker.root / "acceptance"),
    )
    assert result.exit_code == 0, result.output
    assert (maker.root / "acceptance" / "site.json").is_file()


def test_several_classes_are_refused_where_pneumonia_is_evaluated(maker: Maker) -> None:
    table = _table(maker, maker.root / "table.csv")
    names = ("--path-column", "Image Index", "--label-column", "Sex", "--classes", "F,M", "--patient-column", "MRN")
    for command in (("accept", table, "--site-name", "x"), ("evaluate", "--predictions", table, "--data", table)):
        result = _invoke(
            *command, *names, "--out", maker.root / "out", *(("--split", "all") if "--data" in command else ())
        )
        assert getattr(result.exception, "code", "") == "dataset", result.output
        assert "needs images of NORMAL and PNEUMONIA; the classes are F, M" in str(result.exception)
