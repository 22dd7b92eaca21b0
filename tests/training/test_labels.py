"""Training on the names of another hospital: what was mapped is recorded, and used again without the options."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from tests.training.conftest import small

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.runs.record import RunRecord, read_run, recorded_labels
from pneumoscope.runs.run_folder import MANIFEST_FILE
from pneumoscope.training.run_series import train_seeds
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training

MAPPING = LabelMapping(label_column="Finding", path_column="file", positive="Pneumonia", patient_column="MRN")


@pytest.fixture(scope="module")
def table(phantoms: Path) -> Path:
    """The phantoms in a CSV file with other names of columns and labels."""
    lines = ["file,Finding,MRN,split"]
    for image in load_manifest(phantoms):
        finding = "Pneumonia" if image.positive else "No Finding"
        lines.append(
            f"{phantoms.name}/{image.path},{finding},{image.patient},{'test' if image.split == 'test' else ''}"
        )
    file = phantoms.parent / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    out = tmp_path_factory.mktemp("labels") / "run"
    return out, train_run(small(training={"epochs": 1}), table, out, labels=MAPPING)


def test_run_records_the_mapping_and_its_manifest_has_our_names(run: tuple[Path, RunRecord], phantoms: Path) -> None:
    out, record = run
    assert record.labels == read_run(out).labels == recorded_labels(out) == MAPPING
    manifest = load_manifest(out / MANIFEST_FILE)
    given = {image.sha256: (image.label, image.patient) for image in load_manifest(phantoms)}
    assert {image.sha256: (image.label, image.patient) for image in manifest} == given


def test_evaluation_of_the_run_needs_no_options(run: tuple[Path, RunRecord], table: Path) -> None:
    evaluation, _ = evaluate(run[0], table)
    assert evaluation.counts == load_manifest(table, labels=MAPPING).counts()["test"]
    again, _ = evaluate(run[0], run[0] / MANIFEST_FILE)
    assert again.metrics["auroc"] == evaluation.metrics["auroc"]


def test_options_of_an_evaluation_replace_those_of_the_run(run: tuple[Path, RunRecord], table: Path) -> None:
    with pytest.raises(UnknownNameError, match="no image has the label 'Mass' of --positive"):
        evaluate(run[0], table, labels=dataclasses.replace(MAPPING, positive="Mass"))


def test_run_is_resumed_without_the_options(run: tuple[Path, RunRecord], table: Path) -> None:
    assert train_run(small(training={"epochs": 1}), table, run[0], resume=True) == run[1]


def test_more_seeds_are_trained_without_the_options(table: Path, tmp_path: Path, without_bundle: None) -> None:
    recipe = small(training={"epochs": 1})
    train_seeds(recipe, table, tmp_path / "runs", 1, labels=MAPPING)
    records = train_seeds(recipe, table, tmp_path / "runs", 2, resume=True)
    assert [record.labels for record in records] == [MAPPING, MAPPING]


def test_run_without_a_mapping_records_none(phantoms: Path, tmp_path: Path, without_bundle: None) -> None:
    record = train_run(small(training={"epochs": 1}), phantoms, tmp_path / "run", labels=LabelMapping())
    assert record.labels is None
    assert '"labels"' not in (tmp_path / "run" / "run.json").read_text().replace('"labels": "label"', "")


def test_recipe_makes_the_etiology_the_label(phantoms: Path, tmp_path: Path, without_bundle: None) -> None:
    record = train_run(
        small(training={"epochs": 1}, data={"labels": "etiology"}),
        phantoms,
        tmp_path / "run",
        labels=LabelMapping(positive="virus"),
    )
    assert record.labels == LabelMapping(label_column="etiology", positive="virus")
    viruses = sum(image.etiology == "virus" for image in load_manifest(phantoms).split("test"))
    assert record.counts["test"]["PNEUMONIA"] == viruses > 0
    # A copy of the run, whose manifest has the labels already.
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    again = load_manifest(tmp_path / "copy" / MANIFEST_FILE, labels=record.labels, recorded=True)
    assert again.counts() == record.counts
