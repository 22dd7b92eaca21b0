"""Comparisons of models of several classes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from pneumoscope.bundle.bundle_folder import DEFAULT_BUNDLE
from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.core.population import Population
from pneumoscope.evaluation.multiclass.compare import compare_multiclass
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.multiple_testing import holm
from pneumoscope.statistics.replicates import proportion_covariance, replicates_difference


@pytest.fixture
def runs(maker):
    """Two runs on the same images; the second one takes more of the dark images for mid."""
    data = maker.classes(count=20)
    folders = [maker.multiclass_run("good"), maker.multiclass_run("poor", edges=(65.0, 175.0))]
    for folder in folders:
        evaluate_multiclass(folder, data)
    return folders


def read_probabilities(run):
    rows = list(csv.DictReader((run / "evaluation/test/predictions.csv").read_text().splitlines()))
    rows.sort(key=lambda row: (row["sha256"], row["path"]))
    p = np.array([[float(row[f"probability_{name}"]) for name in ("bright", "dark", "mid")] for row in rows])
    return (
        p,
        np.array([("bright", "dark", "mid").index(row["label"]) for row in rows]),
        [row["patient"] for row in rows],
    )


def test_pairs_are_tested_by_accuracy_and_macro_auroc(runs):
    comparison = compare_multiclass(runs)
    (a, y, patients), (b, _, _) = map(read_probabilities, runs)
    accuracy, macro = comparison.pairs
    correct = [(p.argmax(1) == y).astype(int) for p in (a, b)]
    assert accuracy.metric == "accuracy"
    assert accuracy.difference.value == pytest.approx(correct[0].mean() - correct[1].mean())
    assert accuracy.test == "mcnemar, exact, clustered by patient (permutation)"
    leads = np.array([sum((correct[0] - correct[1])[[p == each for p in patients]]) for each in sorted(set(patients))])
    signs = np.random.default_rng(0).choice([-1, 1], size=(20_000, len(leads)))
    permuted = np.mean(np.abs(signs @ leads) >= abs(leads.sum()))
    assert accuracy.p == pytest.approx(permuted, abs=0.01)
    assert macro.metric == "macro_auroc"
    expected = [metrics.roc_auc_score(y, p, multi_class="ovr") for p in (a, b)]
    assert macro.difference.value == pytest.approx(expected[0] - expected[1])
    assert accuracy.p_holm == accuracy.p  # one pair for each metric


def test_three_runs_are_corrected_by_holm(runs, maker):
    third = maker.multiclass_run("third", edges=(85.0, 150.0))
    evaluate_multiclass(third, maker.root / "classes" / "images.csv")
    comparison = compare_multiclass([*runs, third])
    for metric in ("accuracy", "macro_auroc"):
        pairs = [pair for pair in comparison.pairs if pair.metric == metric]
        p = [pair.p for pair in pairs]
        defined = [value for value in p if value is not None]
        adjusted = iter(_holm(defined))
        assert [pair.p_holm for pair in pairs] == pytest.approx([None if v is None else next(adjusted) for v in p])
    assert any("has the highest accuracy of the 3 runs" in sentence for sentence in comparison.sentences)


def _holm(p):
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.minimum(1, np.array(p)[order] * (len(p) - np.arange(len(p)))))
    return stepped[stats.rankdata(p, method="ordinal") - 1]


def test_files_of_a_comparison(runs, tmp_path):
    comparison = compare_multiclass(runs, out=tmp_path / "out", command="pneumoscope compare")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["pairs"][0]["p"] == comparison.pairs[0].p
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    values = {(row["run"], row["metric"]): float(row["value"]) for row in rows}
    assert values["good", "macro_auroc"] == comparison.runs[0].metrics["macro_auroc"].value


def test_bundles_are_evaluated_first(runs, maker, tmp_path):
    bundle = maker.multiclass_bundle(maker.root / "other", edges=(90.0, 150.0), name="third")
    with pytest.raises(UsageError, match="--data"):
        compare_multiclass([*runs, bundle])
    comparison = compare_multiclass([*runs, bundle], data=maker.root / "classes" / "images.csv", out=tmp_path / "out")
    assert [run.name for run in comparison.runs] == ["good", "poor", "third"]
    assert (tmp_path / "out" / "evaluations" / "other" / "predictions.csv").is_file()


def test_nothing_is_evaluated_before_all_inputs_are_checked(runs, maker, tmp_path):
    data, ledger = maker.root / "classes" / "images.csv", maker.root / "ledger.jsonl"
    before = ledger.read_bytes()
    first, second = (maker.multiclass_bundle(maker.root / folder / "same", name=folder) for folder in ("a", "b"))
    third = maker.multiclass_bundle(maker.root / "good", name="good")
    binary = maker.bundle(maker.root / "binary", name="binary")
    other = maker.multiclass_run("other")
    evaluate_multiclass(other, maker.classes("others", seed=4, count=20), ledger=tmp_path / "ledger")
    for targets, message in (
        ([first, second], "have the same name 'same'"),
        ([runs[0], third], "2 runs have the name 'good'"),
        ([first, *runs, other], "other images than 'good'"),
        ([first, maker.run("unevaluated")], "no evaluation 'test' of several classes"),
    ):
        with pytest.raises(RunError, match=message):
            compare_multiclass(targets, data=data, out=tmp_path / "out")
    for target in (binary, DEFAULT_BUNDLE):
        with pytest.raises(RunError, match="is of NORMAL and PNEUMONIA; several classes are compared here") as error:
            compare_multiclass([first, target], data=data, out=tmp_path / "out")
        assert error.value.hint.startswith("Compare models of one kind")
    assert ledger.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_models_of_other_classes_are_refused_before_they_are_evaluated(runs, maker):
    bundle = maker.multiclass_bundle(maker.root / "renamed")
    card = json.loads((bundle / "card.json").read_text())
    card["classes"] = ["bright", "dim", "mid"]
    sets = card["prediction_sets"]["classes"]
    sets["dim"] = sets.pop("dark")
    (bundle / "card.json").write_text(json.dumps(card))
    before = (maker.root / "ledger.jsonl").read_bytes()
    with pytest.raises(RunError, match="has the classes bright, dim, mid, and 'good' has bright, dark, mid"):
        compare_multiclass([runs[0], bundle], data=maker.root / "classes" / "images.csv")
    assert (maker.root / "ledger.jsonl").read_bytes() == before


def test_the_notice_states_the_population_of_each_run(maker):
    data = maker.classes()
    populations = [Population(sentence="Adults from Oslo."), Population(sentence="Children from Lima.")]
    runs = [maker.multiclass_run(f"run-{i}", population=each) for i, each in enumerate(populations)]
    for run in runs:
        evaluate_multiclass(run, data)
    notice = compare_multiclass(runs).notice
    assert "run-0: Adults from Oslo." in notice
    assert "run-1: Children from Lima." in notice
    assert compare_multiclass(runs[:1]).notice.endswith("Adults from Oslo.")


def test_other_images_and_models_for_pneumonia_are_refused(runs, maker):
    other = maker.multiclass_run("other")
    evaluate_multiclass(other, maker.classes("others", seed=4, count=20))
    with pytest.raises(RunError, match="other images than 'good'"):
        compare_multiclass([runs[0], other])
    from pneumoscope.evaluation.evaluate import evaluate

    binary = maker.run("binary")
    evaluate(binary, maker.images())
    with pytest.raises(RunError, match="is of NORMAL and PNEUMONIA"):
        compare_multiclass([runs[0], binary])
    with pytest.raises(RunError, match="no evaluation 'north' of several classes"):
        compare_multiclass([runs[0], binary], evaluation="north")


def test_runs_of_one_recipe_are_named_after_their_folders(maker):
    data = maker.classes()
    runs = [maker.multiclass_run(folder, recipe="levels") for folder in ("first", "second")]
    for run in runs:
        evaluate_multiclass(run, data)
    assert [run.name for run in compare_multiclass(runs).runs] == ["first", "second"]


def test_repeated_evaluations_of_the_test_images_are_stated(runs, maker):
    assert not any("ledger" in sentence for sentence in compare_multiclass(runs).sentences)
    evaluate_multiclass(runs[0], maker.root / "classes" / "images.csv")
    assert (
        compare_multiclass(runs)
        .sentences[-1]
        .startswith(
            "The latest of the 2 compared evaluations is evaluation 3 of these images in the test ledger: results are optimistic"
        )
    )


@pytest.fixture
def seeds(maker):
    """Three seeds of a good recipe, two of a poor one, and the CSV file of their images."""
    data = maker.classes(count=20)
    for recipe, edges in (("good", (100, 105, 112)), ("poor", (70, 75))):
        for seed, edge in enumerate(edges):
            run = maker.multiclass_run(f"{recipe}/seed-{seed}", recipe=recipe, seed=seed, edges=(float(edge), 150.0))
            evaluate_multiclass(run, data)
    return maker.root / "runs"


def test_two_single_runs_are_tested_as_usual_beside_a_group(seeds, maker):
    singles = [maker.multiclass_run("one", edges=(90.0, 160.0)), maker.multiclass_run("two", edges=(65.0, 175.0))]
    for run in singles:
        evaluate_multiclass(run, maker.root / "classes" / "images.csv")
    comparison = compare_multiclass([seeds / "good", *singles])
    for pair in compare_multiclass(singles).pairs:
        of_metric = [each for each in comparison.pairs if each.metric == pair.metric]
        (found,) = (each for each in of_metric if (each.a, each.b) == ("one", "two"))
        assert (found.test, found.difference, found.p) == (pair.test, pair.difference, pair.p)
        assert [each.p_holm for each in of_metric] == holm([each.p for each in of_metric])
        assert sum(each.test.startswith("obuchowski") for each in of_metric) == 2
    text = " ".join(comparison.sentences)
    assert "one and two are one training each: a difference applies to these trainings, not to their recipes." in text


def test_seeds_of_one_recipe_are_compared_by_their_mean(seeds):
    comparison = compare_multiclass([seeds / "good", seeds / "poor"])
    good, poor = comparison.groups
    assert (good.name, good.seeds, poor.seeds) == ("good", (0, 1, 2), (0, 1))
    found = [read_probabilities(seeds / f"good/seed-{seed}") for seed in range(3)]
    values = [metrics.roc_auc_score(y, p, multi_class="ovr") for p, y, _ in found]
    spread = good.metrics["macro_auroc"]
    assert spread.mean.value == pytest.approx(np.mean(values))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))
    assert (spread.minimum, spread.maximum) == pytest.approx((min(values), max(values)))
    assert spread.mean.low < spread.mean.value < spread.mean.high
    assert spread.mean.method == "obuchowski-rockette, random seeds and patients"
    assert good.metrics["brier"].mean.method == "mean of seeds"
    assert [(pair.a, pair.b, pair.metric) for pair in comparison.pairs] == [
        ("good", "poor", "accuracy"),
        ("good", "poor", "macro_auroc"),
    ]
    accuracy, macro = comparison.pairs
    assert accuracy.test == "obuchowski-rockette, random seeds and patients"
    others = [read_probabilities(seeds / f"poor/seed-{seed}") for seed in range(2)]
    correct = [p.argmax(1) == y for p, y, _ in (*found, *others)]
    assert good.metrics["accuracy"].mean.value == pytest.approx(np.mean(correct[:3]))
    patients = patient_groups(found[0][2], len(found[0][1]))
    _, covariance = proportion_covariance(correct, patients)
    means = [each.mean() for each in correct]
    expected, p = replicates_difference(means[:3], means[3:], covariance, n=60, method="")
    assert (accuracy.difference.value, accuracy.difference.low, accuracy.p) == pytest.approx(
        (expected.value, expected.low, p)
    )
    areas = [metrics.roc_auc_score(y, p, multi_class="ovr") for p, y, _ in others]
    assert macro.difference.value == pytest.approx(np.mean(values) - np.mean(areas))
    assert comparison.sentences[0].startswith(
        f"good, 3 seeds (0, 1, 2): mean accuracy {good.metrics['accuracy'].mean}, standard deviation"
    )
    assert f"mean macro AUROC {spread.mean}" in comparison.sentences[0]
    assert "seed-" not in " ".join(comparison.sentences)
    rows = {row["run"] for row in comparison.rows()}
    assert "good (mean of 3 seeds)" in rows
