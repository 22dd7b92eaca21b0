"""Comparison of runs from their result files, compared with SciPy on the predictions."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from pneumoscope.core.errors import DatasetError, LayoutError, RunError, StorageError, UnknownNameError, UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.population import Population
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.inference.model import load_model
from pneumoscope.runs.evaluations import read_predictions


@pytest.fixture(scope="module")
def prepared(shared_maker):
    """A good run, a run with smaller logits, and a run with the opposite decisions."""
    images = shared_maker.images("compared", normal=40, pneumonia=60)
    runs = [shared_maker.run("good"), shared_maker.run("weak", gain=0.001), shared_maker.run("wrong", gain=-0.05)]
    ledger = shared_maker.root / "compared.jsonl"
    ledger.unlink(missing_ok=True)  # a fixture of a module may be set up twice in one process
    for run in runs:
        evaluate(run, images, ledger=ledger)
    return images, runs


@pytest.fixture
def runs(prepared, tmp_path):
    return [shutil.copytree(run, tmp_path / "compared" / run.name) for run in prepared[1]]


def correct(run):
    images = sorted(read_predictions(run / "evaluation" / "test" / "predictions.csv"), key=lambda image: image.path)
    return np.array([(image.score >= 0.5) == (image.label == "PNEUMONIA") for image in images]), images


def test_paired_test_agrees_with_a_permutation_test(runs):
    comparison = compare(runs)
    (good, images), (wrong, _) = correct(runs[0]), correct(runs[2])
    pair = next(pair for pair in comparison.pairs if (pair.a, pair.b, pair.metric) == ("good", "wrong", "accuracy"))
    assert pair.difference.value == pytest.approx(good.mean() - wrong.mean())
    sums = {}
    for image, value in zip(images, good.astype(int) - wrong.astype(int), strict=True):
        sums[image.patient] = sums.get(image.patient, 0) + value
    signs = np.array([value for value in sums.values() if value])
    draws = np.random.default_rng(0).choice([-1, 1], (20_000, len(signs))) @ np.abs(signs)
    assert pair.p == pytest.approx((np.abs(draws) >= abs(signs.sum())).mean(), abs=0.003)
    assert pair.verdict == "a"
    assert comparison.runs[0].test["accuracy"].value == pytest.approx(good.mean())


def test_comparison_states_the_population_of_each_run_if_they_differ(prepared, shared_maker, tmp_path):
    images, runs = prepared
    adults = shared_maker.run("adults", gain=0.02, population=Population(ages=(18, 90), sites=2, view="PA"))
    evaluation, _ = evaluate(adults, images, ledger=tmp_path / "ledger.jsonl")
    sentence = "Trained on PA radiographs of adults of 18 to 90 years from 2 hospitals."

    assert evaluation.notice == f"{NOTICE} {sentence}"
    assert compare(runs).notice == f"{NOTICE} Its training population is unknown."
    assert compare([runs[0], adults, runs[1]]).notice == (
        f"{NOTICE} Training population unknown: good, weak. adults: {sentence}"
    )


def test_comparison_json_has_images_runs_pairs_and_sentences(runs, tmp_path):
    comparison = compare(runs, out=tmp_path / "out", command="pneumoscope compare ...")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["schema"] == 1
    assert data["images"]["n"] == 100
    assert data["images"]["counts"] == {"NORMAL": 40, "PNEUMONIA": 60}
    assert len(data["images"]["sha256"]) == 64
    required = {"name", "network", "optimizer", "batch", "image_size", "epochs", "seed", "device"}
    required |= {"average_train_accuracy", "average_validation_accuracy", "test"}
    for run in data["runs"]:
        assert required <= set(run)
        assert run["test"]["n"] == 100
        assert {"value", "low", "high", "method", "n"} <= set(run["test"]["accuracy"])
        assert len(run["test"]) == 18
    assert len(data["pairs"]) == 12
    assert data["reference"] is None
    assert data["command"] == "pneumoscope compare ..."
    assert data["sentences"] == list(comparison.sentences)


def test_csv_has_one_row_per_run_and_metric(runs, tmp_path):
    comparison = compare(runs[:2], out=tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert len(rows) == 2 * 17
    (row,) = (row for row in rows if (row["run"], row["metric"]) == ("weak", "auroc"))
    assert float(row["value"]) == comparison.runs[1].test["auroc"].value


def test_single_run_has_no_pairs(runs):
    comparison = compare(runs[:1])
    assert comparison.pairs == ()
    assert comparison.sentences == ()


def test_weights_and_bundles_are_not_needed(runs):
    before = compare(runs)
    for run in runs:
        shutil.rmtree(run / "bundle")
    again = compare(runs)
    assert (again.runs, again.pairs, again.sentences) == (before.runs, before.pairs, before.sentences)


def test_operating_point_selects_the_threshold(runs):
    comparison = compare(runs[:2], operating_point="rule_out")
    assert comparison.operating_point == "rule_out"
    _, images = correct(runs[0])
    decisions = np.array([image.score >= 0.2 for image in images])
    labels = np.array([image.label == "PNEUMONIA" for image in images])
    assert comparison.runs[0].test["sensitivity"].value == pytest.approx(decisions[labels].mean())
    with pytest.raises(UnknownNameError, match=r"good' has no operating point 'rule-ou'. Did you mean 'rule_out'"):
        compare(runs, operating_point="rule-ou")


def test_images_are_paired_by_content(runs):
    before = compare(runs[:2])
    file = runs[1] / "evaluation" / "test" / "predictions.csv"
    header, *rows = file.read_text().splitlines(keepends=True)
    file.write_text(header + "".join(row.replace("test/", "elsewhere/") for row in reversed(rows)))
    assert compare(runs[:2]).pairs == before.pairs


def test_comparison_without_runs_is_an_error():
    with pytest.raises(UsageError, match="no runs to compare"):
        compare([])


def test_error_for_a_run_without_evaluation_states_the_command(maker):
    run = maker.run()
    with pytest.raises(RunError, match=rf"has no evaluation 'test' .*pneumoscope evaluate {run} --data DATA"):
        compare([run])


def test_folder_without_a_run_is_an_error(tmp_path):
    for missing in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(
            RunError, match=f"there is no run, bundle, evaluation folder or CSV file '{missing}'. Check the path"
        ):
            compare([missing])


def test_runs_on_different_images_are_an_error(runs, maker):
    other = maker.run("other")
    evaluate(other, maker.images("others", seed=5))
    with pytest.raises(RunError, match=r"run 'other' was evaluated on other images than 'good' \(32 and 100 images"):
        compare([runs[0], other])


def test_different_patients_are_an_error(runs):
    file = runs[1] / "evaluation" / "test" / "predictions.csv"
    text = file.read_text()
    assert "IM-0000," in text
    file.write_text(text.replace("IM-0000,NORMAL", "IM-9999,NORMAL"))
    with pytest.raises(RunError, match=r"of patient 'IM-9999' in 'weak' and NORMAL of patient 'IM-0000' in 'good'"):
        compare(runs[:2])


def test_runs_with_the_same_name_get_the_names_of_their_folders(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "again")
    comparison = compare([runs[0], tmp_path / "again", runs[1]])
    assert [row.name for row in comparison.runs] == [runs[0].name, "again", "weak"]
    assert {pair.a for pair in comparison.pairs} | {pair.b for pair in comparison.pairs} == {
        runs[0].name,
        "again",
        "weak",
    }


def test_another_evaluation_is_compared_by_its_name(runs, prepared, maker):
    for run in runs[:2]:
        shutil.copytree(run / "evaluation" / "test", run / "evaluation" / "north")
        shutil.rmtree(run / "evaluation" / "test")
    comparison = compare(runs[:2], evaluation="north")
    assert (comparison.evaluation, comparison.images["n"]) == ("north", 100)
    with pytest.raises(RunError, match=r"has no evaluation 'test' .* it has north\).*--evaluation"):
        compare(runs[:2])


def test_runs_with_the_same_name_and_folder_name_are_an_error(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / runs[0].name)
    with pytest.raises(
        RunError, match=rf"2 runs have the name '{runs[0].name}' \(.*{runs[0].name}\).*Rename the folders"
    ):
        compare([runs[0], tmp_path / runs[0].name])


@pytest.mark.parametrize("damage", ["missing image", "changed score"])
def test_files_of_different_evaluations_are_an_error(runs, damage):
    file = runs[0] / "evaluation" / "test" / "predictions.csv"
    lines = file.read_text().splitlines(keepends=True)
    if damage == "missing image":
        lines.pop()
    else:
        *before, _, probability = lines[1].split(",")
        lines[1] = ",".join([*before, "0.0" if float(lines[1].split(",")[6]) >= 0.5 else "1.0", probability])
    file.write_text("".join(lines))
    with pytest.raises(RunError, match=r"evaluation.json and predictions.csv in .* are from different evaluations"):
        compare(runs)


def test_more_test_set_evaluations_than_runs_are_reported(runs, prepared, tmp_path):
    assert not any("ledger" in sentence for sentence in compare(runs).sentences)
    ledger = shutil.copy(prepared[0].parent / "compared.jsonl", tmp_path)
    evaluate(runs[0], prepared[0], ledger=Path(ledger))
    assert compare(runs).sentences[-1] == (
        "The latest of the 3 compared evaluations is evaluation 4 of these images in the test ledger: results are optimistic if"
        " a model was selected by an earlier evaluation."
    )
    assert compare(runs[:1]).sentences[-1].startswith("This is evaluation 4 of these images in the test ledger")


def test_unwritable_folder_is_an_error(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        compare(runs, out=tmp_path / "file" / "out")


def test_mcnemar_test_of_independent_images_is_the_binomial_test(maker):
    images = maker.images(normal=20, pneumonia=30)
    for path in (images / "test").rglob("*.png"):
        path.rename(path.with_name(f"image{path.stem.replace('-', '').replace('_', '')}.png"))
    runs = [maker.run("one"), maker.run("two", gain=-0.05)]
    for run in runs:
        evaluate(run, images, operating_points=["half"])
    (one, _), (two, _) = correct(runs[0]), correct(runs[1])
    only_one, only_two = int((one & ~two).sum()), int((~one & two).sum())
    assert compare(runs).pairs[0].p == pytest.approx(stats.binomtest(only_one, only_one + only_two).pvalue)


# --- bundles and predictions of other tools --------------------------------------------------------------------------


def scores_of(run, file, noise=0.0):
    """Write the probabilities of a run's images with noise, as another tool would, and return the file."""
    images = read_predictions(run / "evaluation" / "test" / "predictions.csv")
    random = np.random.default_rng(7)
    values = [min(max(image.score + noise * random.normal(), 0), 1) for image in images]
    lines = [f"{Path(image.path).name},{value!r}" for image, value in zip(images, values, strict=True)]
    file.write_text("\n".join(["path,probability", *lines]))
    return file


def test_predictions_of_another_tool_are_compared_with_a_run_and_a_bundle(prepared, runs, maker, tmp_path):
    scores = scores_of(runs[0], tmp_path / "other.csv", noise=0.4)
    bundle = maker.bundle(tmp_path / "shipped", name="shipped", gain=-0.05)
    comparison = compare([runs[0], scores, bundle], data=prepared[0], out=tmp_path / "out")
    assert [row.name for row in comparison.runs] == ["good", "other", "shipped"]
    assert [row.network for row in comparison.runs] == ["mean-gray", None, None]
    good, images = correct(runs[0])
    values = {line.split(",")[0]: float(line.split(",")[1]) for line in scores.read_text().splitlines()[1:]}
    other = np.array([(values[Path(image.path).name] >= 0.5) == (image.label == "PNEUMONIA") for image in images])
    pair = next(pair for pair in comparison.pairs if (pair.a, pair.b, pair.metric) == ("good", "other", "accuracy"))
    assert pair.difference.value == pytest.approx(good.mean() - other.mean())
    sums = {}
    for image, value in zip(images, good.astype(int) - other.astype(int), strict=True):
        sums[image.patient] = sums.get(image.patient, 0) + value
    signs = np.array([value for value in sums.values() if value])
    draws = np.random.default_rng(0).choice([-1, 1], (20_000, len(signs))) @ np.abs(signs)
    assert pair.p == pytest.approx((np.abs(draws) >= abs(signs.sum())).mean(), abs=0.006)
    areas = [
        metrics.roc_auc_score([image.label == "PNEUMONIA" for image in images], each)
        for each in ([image.logit for image in images], [values[Path(image.path).name] for image in images])
    ]
    pair = next(pair for pair in comparison.pairs if (pair.a, pair.b, pair.metric) == ("good", "other", "auroc"))
    assert pair.difference.value == pytest.approx(areas[0] - areas[1])
    assert (
        "How the other models were trained is unknown; a difference applies to these images."
        in comparison.sentences[-1]
    )
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["other", "shipped"]
    # The results of both are evaluations, which can be compared again without another line in the ledger.
    evaluations = tmp_path / "out" / "evaluations"
    again = compare([runs[0], evaluations / "other", evaluations / "shipped"])
    assert (again.runs, again.pairs) == (comparison.runs, comparison.pairs)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_tests_of_predictions_agree_with_the_binomial_test_and_a_bootstrap(maker, tmp_path):
    folder = maker.images(normal=60, pneumonia=60)
    for path in (folder / "test").rglob("*.png"):  # file names without patients
        path.rename(path.with_name(f"image{path.stem.replace('-', '').replace('_', '')}.png"))
    images = load_manifest(folder).images
    labels, random = np.array([image.positive for image in images]), np.random.default_rng(3)
    scores = [np.clip(0.35 + 0.3 * labels + 0.25 * random.normal(size=len(labels)), 0, 1) for _ in range(2)]
    files = []
    for name, values in zip("ab", scores, strict=True):
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text(
            "\n".join(["id,probability", *(f"{i.sha256},{float(v)!r}" for i, v in zip(images, values, strict=True))])
        )
    comparison = compare(files, data=folder)
    a, b = ((values >= 0.5) == labels for values in scores)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    accuracy, auroc, *_ = comparison.pairs
    assert accuracy.p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    draws = []
    for _ in range(400):
        rows = np.r_[
            random.choice(np.flatnonzero(labels), labels.sum()), random.choice(np.flatnonzero(~labels), (~labels).sum())
        ]
        draws.append(np.subtract(*(metrics.roc_auc_score(labels[rows], values[rows]) for values in scores)))
    assert (auroc.difference.high - auroc.difference.low) / 3.92 == pytest.approx(np.std(draws), rel=0.15)


@pytest.mark.slow
def test_included_model_is_compared(maker, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    images = maker.images()
    comparison = compare([Path("default"), maker.bundle(tmp_path / "gray")], data=images)
    assert [row.name for row in comparison.runs] == [load_model().card.name, "gray"]
    assert comparison.images["n"] == 32
    name = load_model().card.name
    (rejection,) = (sentence for sentence in comparison.sentences if "rejects" in sentence)
    assert rejection.startswith(f"{name}: `predict` rejects ")
    assert rejection.endswith("; they are evaluated anyway.")


def test_bundles_and_files_need_labeled_images(runs, maker, tmp_path):
    scores = scores_of(runs[0], tmp_path / "other.csv")
    with pytest.raises(UsageError, match=r"other.csv' has no labels and no evaluation.*--data"):
        compare([runs[0], scores])


def test_thresholds_of_predictions_need_validation_predictions(prepared, runs, maker, tmp_path):
    scores, bundle = scores_of(runs[0], tmp_path / "other.csv"), maker.bundle(tmp_path / "shipped")
    with pytest.raises(UsageError, match="'balanced' is chosen on validation images") as error:
        compare([bundle, scores], operating_point="balanced", data=prepared[0])
    assert error.value.hint == (
        f"Evaluate the file first: pneumoscope evaluate --predictions {scores} --data {prepared[0]} --validation-predictions"
        " FILE --out FOLDER; then compare FOLDER"
    )
    assert not (tmp_path / "ledger.jsonl").exists()


def test_unknown_operating_point_of_a_bundle_is_an_error_before_it_is_scored(prepared, maker, tmp_path):
    bundle = maker.bundle(tmp_path / "shipped")
    with pytest.raises(UnknownNameError, match="no operating point 'foo'"):
        compare([bundle], operating_point="foo", data=prepared[0], out=tmp_path / "out")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_no_bundle_is_scored_if_a_file_cannot_be_evaluated(prepared, runs, maker, tmp_path):
    scores, bundle = scores_of(runs[0], tmp_path / "other.csv"), maker.bundle(tmp_path / "shipped")
    scores.write_text("\n".join(scores.read_text().splitlines()[:-1]))
    with pytest.raises(DatasetError, match="has no prediction for 1 of 100 test images"):
        compare([bundle, scores], data=prepared[0])
    assert not (tmp_path / "ledger.jsonl").exists()


def test_no_file_is_evaluated_if_another_has_other_columns(prepared, runs, tmp_path):
    first, second = (scores_of(run, tmp_path / f"{run.name}.csv") for run in runs[:2])
    header, *rows = second.read_text().splitlines()
    second.write_text("\n".join([header.replace(header.split(",")[1], "Pneumonia"), *rows]))
    with pytest.raises(
        LayoutError, match=r"weak.csv has no column .*'Pneumonia'\. The columns of the files differ"
    ) as error:
        compare([first, second], data=prepared[0])
    assert "only weak.csv has Pneumonia, and only good.csv has probability. --probability-column" in error.value.hint
    assert error.value.hint.endswith(
        f"evaluate them first: pneumoscope evaluate --predictions {second} --data {prepared[0]} --probability-column COLUMN"
        " --out FOLDER; then compare the folders"
    )
    second.write_text(second.read_text().replace("Pneumonia", "Score"))
    first.write_text(first.read_text().replace("probability", "Score"))
    with pytest.raises(LayoutError) as error:
        compare([first, second], data=prepared[0])
    assert "differ" not in error.value.hint
    assert not (tmp_path / "ledger.jsonl").exists()


def test_error_of_an_evaluation_folder_does_not_take_it_for_a_run(prepared, runs, maker, tmp_path):
    compare([scores_of(runs[0], tmp_path / "other.csv")], data=prepared[0], out=tmp_path / "out")
    folder = tmp_path / "out" / "evaluations" / "other"
    shutil.copy(runs[2] / "evaluation" / "test" / "predictions.csv", folder)
    with pytest.raises(RunError, match=r"predictions.csv in '.*other' are from different evaluations") as error:
        compare([folder])
    assert str(folder) not in error.value.hint


def test_nothing_is_evaluated_if_a_run_cannot_be_compared(prepared, runs, maker, tmp_path):
    scores = scores_of(runs[0], tmp_path / "other.csv")
    (runs[1] / "evaluation" / "test" / "evaluation.json").unlink()
    with pytest.raises(RunError, match="has no evaluation 'test'"):
        compare([scores, runs[1]], data=prepared[0], out=tmp_path / "out")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_missing_file_of_predictions_is_an_error(prepared, tmp_path):
    with pytest.raises(LayoutError, match=r"cannot read '.*none.csv': No such file"):
        compare([tmp_path / "none.csv"], data=prepared[0])


def test_files_with_one_name_are_an_error(prepared, runs, tmp_path):
    (tmp_path / "other").mkdir()
    files = [scores_of(runs[0], tmp_path / "scores.csv"), scores_of(runs[0], tmp_path / "other" / "scores.csv")]
    with pytest.raises(RunError, match=r"scores.csv' and .*other/scores.csv' have the same name 'scores'"):
        compare(files, data=prepared[0])


def test_other_images_are_counted_with_examples(runs, maker):
    images = maker.images("some", normal=40, pneumonia=59)  # all but one of the compared images
    other = maker.run("other")
    evaluate(other, images)
    with pytest.raises(
        RunError, match=r"0 only in 'other'; 1 only in 'good', such as 'test/PNEUMONIA/person29_bacteria_59"
    ):
        compare([runs[0], other])
