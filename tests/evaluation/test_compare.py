"""Runs compared from their result files alone; numbers against scipy on the written predictions."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pneumoscope.core.errors import RunError, StorageError, UnknownNameError, UsageError
from pneumoscope.evaluation.compare import compare
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.runs.evaluations import read_predictions


@pytest.fixture(scope="module")
def prepared(shared_maker):
    """A network that knows something, one that knows little of it, and one that says the opposite."""
    images = shared_maker.images("compared", normal=40, pneumonia=60)
    found = [shared_maker.run("good"), shared_maker.run("weak", gain=0.001), shared_maker.run("wrong", gain=-0.05)]
    for run in found:
        evaluate(run, images, ledger=shared_maker.root / "compared.jsonl")
    return images, found


@pytest.fixture
def runs(prepared, tmp_path):
    return [shutil.copytree(run, tmp_path / "compared" / run.name) for run in prepared[1]]


def correct(run):
    images = sorted(read_predictions(run / "evaluation" / "test" / "predictions.csv"), key=lambda image: image.path)
    return np.array([(image.score >= 0.5) == (image.label == "PNEUMONIA") for image in images]), images


def test_pairs_are_those_of_the_predictions(runs):
    comparison = compare(runs)
    (good, images), (wrong, _) = correct(runs[0]), correct(runs[2])
    pair = next(pair for pair in comparison.pairs if (pair.a, pair.b, pair.metric) == ("good", "wrong", "accuracy"))
    assert pair.difference.value == pytest.approx(good.mean() - wrong.mean())
    leads = {}
    for image, lead in zip(images, good.astype(int) - wrong.astype(int), strict=True):
        leads[image.patient] = leads.get(image.patient, 0) + lead
    signs = np.array([lead for lead in leads.values() if lead])
    draws = np.random.default_rng(0).choice([-1, 1], (20_000, len(signs))) @ np.abs(signs)
    assert pair.p == pytest.approx((np.abs(draws) >= abs(signs.sum())).mean(), abs=0.003)
    assert pair.verdict == "a"
    assert comparison.runs[0].test["accuracy"].value == pytest.approx(good.mean())


def test_everything_the_issue_asks_for_is_in_the_file(runs, tmp_path):
    comparison = compare(runs, out=tmp_path / "out", command="pneumoscope compare ...")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["schema"] == 1
    assert data["images"]["n"] == 100
    assert data["images"]["counts"] == {"NORMAL": 40, "PNEUMONIA": 60}
    assert len(data["images"]["sha256"]) == 64
    wanted = {"name", "network", "optimizer", "batch", "image_size", "epochs", "seed", "device"}
    wanted |= {"average_train_accuracy", "average_validation_accuracy", "test"}
    for run in data["runs"]:
        assert wanted <= set(run)
        assert run["test"]["n"] == 100
        assert {"value", "low", "high", "method", "n"} <= set(run["test"]["accuracy"])
        assert len(run["test"]) == 13
    assert len(data["pairs"]) == 6
    assert data["reference"] is None
    assert data["command"] == "pneumoscope compare ..."
    assert data["sentences"] == list(comparison.sentences)


def test_the_table_has_a_row_a_run_and_metric(runs, tmp_path):
    comparison = compare(runs[:2], out=tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert len(rows) == 2 * 12
    (row,) = (row for row in rows if (row["run"], row["metric"]) == ("weak", "auroc"))
    assert float(row["value"]) == comparison.runs[1].test["auroc"].value


def test_one_run_alone_has_no_pairs(runs):
    comparison = compare(runs[:1])
    assert comparison.pairs == ()
    assert comparison.sentences == ()


def test_weights_and_bundles_are_not_needed(runs):
    before = compare(runs)
    for run in runs:
        shutil.rmtree(run / "bundle")
    again = compare(runs)
    assert (again.runs, again.pairs, again.sentences) == (before.runs, before.pairs, before.sentences)


def test_another_operating_point(runs):
    comparison = compare(runs[:2], operating_point="rule_out")
    assert comparison.operating_point == "rule_out"
    _, images = correct(runs[0])
    called = np.array([image.score >= 0.2 for image in images])
    labels = np.array([image.label == "PNEUMONIA" for image in images])
    assert comparison.runs[0].test["sensitivity"].value == pytest.approx(called[labels].mean())
    with pytest.raises(UnknownNameError, match=r"no operating point in .* 'rule-ou'. Did you mean 'rule_out'"):
        compare(runs, operating_point="rule-ou")


def test_images_are_paired_by_content_and_not_by_place(runs):
    before = compare(runs[:2])
    file = runs[1] / "evaluation" / "test" / "predictions.csv"
    header, *rows = file.read_text().splitlines(keepends=True)
    file.write_text(header + "".join(row.replace("test/", "elsewhere/") for row in reversed(rows)))
    assert compare(runs[:2]).pairs == before.pairs


def test_no_run_is_refused():
    with pytest.raises(UsageError, match="no run to compare"):
        compare([])


def test_a_run_that_was_not_evaluated_says_what_to_do(maker):
    run = maker.run()
    with pytest.raises(
        RunError, match=rf"has not been evaluated on test images .*pneumoscope evaluate {run} --data DATA"
    ):
        compare([run])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*run.json"):
        compare([tmp_path])


def test_other_images_are_refused(runs, maker):
    other = maker.run("other")
    evaluate(other, maker.images("others", seed=5))
    with pytest.raises(RunError, match=r"run 'other' was judged on other images than 'good' \(32 and 100, hashes"):
        compare([runs[0], other])


def test_other_labels_are_refused(runs):
    file = runs[1] / "evaluation" / "test" / "predictions.csv"
    text = file.read_text()
    assert "IM-0000," in text
    file.write_text(text.replace("IM-0000,NORMAL", "IM-9999,NORMAL"))
    with pytest.raises(RunError, match=r"of patient 'IM-9999' in 'weak' and NORMAL of patient 'IM-0000' in 'good'"):
        compare(runs[:2])


def test_two_runs_of_one_recipe_go_by_their_folders(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "again")
    found = compare([runs[0], tmp_path / "again", runs[1]])
    assert [row.name for row in found.runs] == [runs[0].name, "again", "weak"]
    assert {pair.a for pair in found.pairs} | {pair.b for pair in found.pairs} == {runs[0].name, "again", "weak"}


def test_two_runs_of_one_recipe_in_folders_of_one_name_are_refused(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / runs[0].name)
    with pytest.raises(
        RunError, match=rf"2 runs are called '{runs[0].name}' \(.*{runs[0].name}\).*give their folders different names"
    ):
        compare([runs[0], tmp_path / runs[0].name])


@pytest.mark.parametrize("what", ["an image is missing", "a score was changed"])
def test_files_of_two_evaluations_are_refused(runs, what):
    file = runs[0] / "evaluation" / "test" / "predictions.csv"
    lines = file.read_text().splitlines(keepends=True)
    if what == "an image is missing":
        lines.pop()
    else:
        *before, _, probability = lines[1].split(",")
        lines[1] = ",".join([*before, "0.0" if float(lines[1].split(",")[6]) >= 0.5 else "1.0", probability])
    file.write_text("".join(lines))
    with pytest.raises(RunError, match=r"evaluation.json and predictions.csv in .* are not of one evaluation"):
        compare(runs)


def test_looks_beyond_the_runs_are_told(runs, prepared, tmp_path):
    assert not any("ledger" in sentence for sentence in compare(runs).sentences)
    ledger = shutil.copy(prepared[0].parent / "compared.jsonl", tmp_path)
    evaluate(runs[0], prepared[0], ledger=Path(ledger))
    assert (
        compare(runs).sentences[-1].startswith("The test ledger held 4 looks at these images for the 3 compared here")
    )


def test_a_place_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        compare(runs, out=tmp_path / "file" / "out")


def test_a_image_a_patient_is_mcnemars_binomial_test(maker):
    """Images whose names tell no patient: the p value is scipy's."""
    images = maker.images(normal=20, pneumonia=30)
    for path in (images / "test").rglob("*.png"):
        path.rename(path.with_name(f"image{path.stem.replace('-', '').replace('_', '')}.png"))
    found = [maker.run("one"), maker.run("two", gain=-0.05)]
    for run in found:
        evaluate(run, images, operating_points=["half"])
    (one, _), (two, _) = correct(found[0]), correct(found[1])
    only_one, only_two = int((one & ~two).sum()), int((~one & two).sum())
    assert compare(found).pairs[0].p == pytest.approx(stats.binomtest(only_one, only_one + only_two).pvalue)
