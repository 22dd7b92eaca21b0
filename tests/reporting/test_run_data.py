"""Data of the runs of a comparison, and run folders that do not belong to it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.core.errors import RunError
from pneumoscope.reporting.run_data import load_run_data, record_rows
from pneumoscope.runs.evaluations import read_predictions


@pytest.fixture(scope="module")
def original(build: Callable[..., Any]) -> Any:
    return build(["first", "second"], n=40, epochs=2)


@pytest.fixture
def built(original: Any, tmp_path: Path) -> Any:
    """Return a copy that a test can damage."""
    comparison, folders = original
    return comparison, [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]


def test_data_of_a_run_is_read(built: Any) -> None:
    comparison, folders = built
    first, second = load_run_data(comparison, folders)
    images = read_predictions(folders[1] / "evaluation" / "test" / "predictions.csv")
    assert second.summary is comparison.runs[1]
    assert second.evaluation.name == "second"
    assert second.scores.logit.tolist() == [image.logit for image in images]
    assert second.scores.score.tolist() == [image.score for image in images]
    assert second.scores.probability.tolist() == [image.probability for image in images]
    assert second.scores.positive.tolist() == [image.label == "PNEUMONIA" for image in images]
    assert second.recipe.startswith("# second\n")
    assert (first.index, second.index) == (0, 1)
    assert first.style != second.style
    assert len(second.epochs) == 2


def test_rows_of_the_record_are_flat_without_recipe_lists_and_empty_values(built: Any) -> None:
    rows = dict(record_rows(load_run_data(*built)[0].record))
    assert rows["versions.torch"] == "2.14.1"
    assert rows["counts.train.NORMAL"] == "1140"
    assert rows["machine.memory"] == "15.6 GiB"
    assert rows["seconds"] == "1860.25"
    assert not {"resumed", "finished"} & set(rows)
    assert not [name for name in rows if name.startswith("recipe")]
    assert record_rows(None) == []


def test_a_missing_folder_is_rejected(built: Any) -> None:
    comparison, folders = built
    with pytest.raises(RunError, match="the comparison has 2 runs; 1 run folder given"):
        load_run_data(comparison, folders[:1])


def test_folders_in_another_order_are_rejected(built: Any) -> None:
    comparison, folders = built
    with pytest.raises(RunError, match="run-1 holds run 'second'; the comparison has 'first' at this position"):
        load_run_data(comparison, folders[::-1])


def test_evaluations_of_other_images_are_rejected(built: Any) -> None:
    comparison, folders = built
    other = dataclasses.replace(comparison, images={**comparison.images, "sha256": "0" * 64})
    with pytest.raises(RunError, match=r"'first' was evaluated on other images \(5f2c5f2c5f2c\).*\(000000000000\)"):
        load_run_data(other, folders)


def test_missing_predictions_are_rejected(built: Any) -> None:
    comparison, folders = built
    path = folders[0] / "evaluation" / "test" / "predictions.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(RunError, match=r"predictions\.csv holds 39 images, but the evaluation has 40"):
        load_run_data(comparison, folders)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "run.json' is not JSON"), (json.dumps([1]), "run.json' is malformed")]
)
def test_a_damaged_record_is_rejected(built: Any, text: str, message: str) -> None:
    comparison, folders = built
    (folders[1] / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        load_run_data(comparison, folders)


def test_a_missing_recipe_is_reported(built: Any) -> None:
    comparison, folders = built
    (folders[1] / "recipe.toml").unlink()
    with pytest.raises(RunError, match=r"cannot read '.*run-1/recipe\.toml': No such file"):
        load_run_data(comparison, folders)
