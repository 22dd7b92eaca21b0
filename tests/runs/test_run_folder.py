"""The layout of run folders, and of folders of runs."""

import pytest

from pneumoscope.core.errors import RunError
from pneumoscope.inference.model import load_model
from pneumoscope.runs.run_folder import find_bundle, has_other_files


def test_folder_of_runs_as_a_model_is_an_error_that_names_its_runs(maker):
    runs = [maker.run(f"runs/seed-{seed}") for seed in range(4)]
    with pytest.raises(RunError, match="runs' is a folder of runs, not a model") as caught:
        load_model(maker.root / "runs")
    assert caught.value.hint == f"Name one of its runs: {runs[0]}, {runs[1]}, {runs[2]}, …"
    assert find_bundle(runs[0]) == runs[0] / "bundle"


def test_bundle_with_runs_beside_its_files_is_a_bundle(maker):
    bundle = maker.bundle(maker.root / "bundle")
    maker.run("bundle/seed-0")
    assert find_bundle(bundle) == bundle


def test_other_files_are_those_beside_no_run(tmp_path, maker):
    assert not has_other_files(tmp_path / "none")
    (tmp_path / "seed-0").mkdir()
    assert not has_other_files(tmp_path)
    (tmp_path / "thorax.png").touch()
    assert has_other_files(tmp_path)
    maker.run("runs/seed-0")
    (maker.root / "runs" / "notes.txt").touch()
    assert not has_other_files(maker.root / "runs")
