"""Runs of one recipe with several seeds: they are compared by their mean, and no seed is quoted alone."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest

from pneumoscope.core.comparison import RunGroup, SeedSpread
from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.comparison.inputs import ScoringOptions, read_evaluated
from pneumoscope.evaluation.comparison.paired_findings import RunScores
from pneumoscope.evaluation.comparison.run_groups import RunScoring, group_runs, group_sentences
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.reporting.metric_columns import metric_columns
from pneumoscope.reporting.report_files import report
from pneumoscope.reporting.table_forms import to_csv, to_markdown
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.multiple_testing import holm
from pneumoscope.statistics.replicates import proportion_covariance, replicates_difference, replicates_mean
from pneumoscope.statistics.roc import delong_covariance

MIDDLES = {
    "group-good": (120, 125, 131),
    "group-poor": (150, 160, 170),
}  # of the decision, in gray levels: 125 is the best


@pytest.fixture(scope="module")
def evaluated(shared_maker):
    """Three seeds of a good recipe, three of a poor one, and a single run, evaluated on the same images."""
    images = shared_maker.images("grouped", normal=40, pneumonia=60)
    for recipe, middles in MIDDLES.items():
        for seed, middle in enumerate(middles):
            shared_maker.run(f"{recipe}/seed-{seed}", recipe=recipe, seed=seed, middle=middle)
    shared_maker.run("group-single", middle=140)
    folder = shared_maker.root / "runs"
    for run in (*folder.glob("group-good/seed-*"), *folder.glob("group-poor/seed-*"), folder / "group-single"):
        evaluate(run, images, ledger=shared_maker.root / "grouped.jsonl")
    return folder


@pytest.fixture
def folder(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "runs")


def correct(run):
    rows = (run / "evaluation/test/predictions.csv").read_text().splitlines()
    header = rows[0].split(",")
    values = sorted(
        (row["path"], row["patient"], (float(row["score"]) >= 0.5) == (row["label"] == "PNEUMONIA"))
        for row in (dict(zip(header, line.split(","), strict=True)) for line in rows[1:])
    )
    return [patient for _, patient, _ in values], np.array([is_correct for *_, is_correct in values])


def spread_group(name, number, unit, low=0.1):
    mean = Interval(0.8, low, None if low is None else 1.0, f"mean of {unit}", 9)
    folds = tuple(range(1, number + 1)) if unit == "folds" else ()
    return RunGroup(name, ("a",) * number, (0,) * number, {"accuracy": SeedSpread(mean, 0.1, 0.7, 0.9)}, folds)


@pytest.mark.parametrize(("unit", "more"), [("folds", "use more folds"), ("seeds", "train more seeds")])
def test_intervals_of_two_or_three_runs_are_remarked_on_once(unit, more):
    for number, degrees in ((2, "1 degree"), (3, "2 degrees")):
        *_, remark = sentences = group_sentences([spread_group(name, number, unit) for name in ("quick", "slow")])
        assert len(sentences) == 3
        assert remark == (
            f"With {number} {unit}, the variance between {unit} has {degrees} of freedom, and intervals can be very wide; {more}."
        )
    assert len(group_sentences([spread_group("quick", 4, unit)])) == 1
    assert len(group_sentences([spread_group("quick", 2, unit, low=None)])) == 1
    *_, remark = group_sentences([spread_group("quick", 3, unit), spread_group("slow", 2, unit)])
    assert remark.startswith(f"With 2 {unit} of slow, ")


@pytest.mark.slow
def test_folder_of_runs_is_compared_by_its_mean_with_spread(folder):
    comparison = compare([folder / "group-good"])
    (group,) = comparison.groups
    assert (group.name, group.seeds) == ("group-good", (0, 1, 2))
    assert (
        group.runs
        == tuple(run.name for run in comparison.runs)
        == tuple(f"group-good/seed-{seed}" for seed in range(3))
    )
    found = [correct(folder / f"group-good/seed-{seed}") for seed in range(3)]
    accuracies = [is_correct.mean() for _, is_correct in found]
    spread = group.metrics["accuracy"]
    assert spread.mean.value == pytest.approx(np.mean(accuracies))
    assert spread.sd == pytest.approx(np.std(accuracies, ddof=1))
    assert (spread.minimum, spread.maximum) == pytest.approx((min(accuracies), max(accuracies)))
    assert spread.sd > 0
    groups = patient_groups(found[0][0], 100)
    values, covariance = proportion_covariance([is_correct for _, is_correct in found], groups)
    expected = replicates_mean(values, covariance, n=100, method="")
    assert (spread.mean.low, spread.mean.high) == pytest.approx((expected.low, expected.high))
    assert spread.mean.method == "obuchowski-rockette, random seeds and patients"
    assert comparison.pairs == ()
    assert comparison.sentences[0].startswith(
        f"group-good, 3 seeds (0, 1, 2): mean accuracy {spread.mean}, standard deviation {spread.sd:.4f}"
    )


def test_representation_has_the_mean_and_no_seed(folder):
    comparison = compare([folder / "group-good", folder / "group-single"])
    mean = comparison.groups[0].metrics["accuracy"].mean
    assert repr(comparison).endswith(f", group-good, mean of 3 seeds (0, 1, 2): accuracy={mean})")
    assert "group-single: accuracy=" in repr(comparison)
    assert "seed-0" not in repr(comparison)


def test_metric_without_a_method_for_seeds_has_a_mean_without_an_interval(folder):
    comparison = compare([folder / "group-good"])
    spread = comparison.groups[0].metrics["brier"]
    assert spread.mean.value == pytest.approx(np.mean([run.test["brier"].value for run in comparison.runs]))
    assert (spread.mean.low, spread.mean.high, spread.mean.method) == (None, None, "mean of seeds")
    assert spread.mean.reason == "means have intervals for accuracy, AUROC, sensitivity and specificity only"


def test_recipes_are_tested_by_their_means_and_no_seed_is_quoted_alone(folder):
    comparison = compare([folder / "group-good", folder / "group-poor", folder / "group-single"])
    assert [(pair.a, pair.b) for pair in comparison.pairs if pair.metric == "accuracy"] == [
        ("group-good", "group-poor"), ("group-good", "group-single"), ("group-poor", "group-single"),
    ]  # fmt: skip
    pair = comparison.pairs[0]
    found = [
        correct(folder / f"{recipe}/seed-{seed}")[1] for recipe in ("group-good", "group-poor") for seed in range(3)
    ]
    groups = patient_groups(correct(folder / "group-single")[0], 100)
    values, covariance = proportion_covariance(found, groups)
    expected, p = replicates_difference(values[:3], values[3:], covariance, n=100, method="")
    assert (pair.difference.value, pair.difference.low, pair.p) == pytest.approx((expected.value, expected.low, p))
    assert pair.test == "obuchowski-rockette, random seeds and patients"
    assert "group-good has a higher accuracy than group-poor" in pair.sentence
    assert "Obuchowski-Rockette, random seeds and patients: p" in pair.sentence
    text = " ".join(comparison.sentences)
    assert "seed-" not in text
    assert "group-good has the highest accuracy of the 3 models" in text
    assert "group-single is one training" in text


def test_two_models_without_seeds_are_tested_as_usual_beside_a_group(folder, shared_maker, tmp_path):
    images, ledger = shared_maker.root / "grouped", tmp_path / "ledger.jsonl"
    models = []
    for name, middle in (("tool", 150), ("default", 165)):
        models.append(tmp_path / name)
        bundle = shared_maker.bundle(shared_maker.root / "bundles" / name, name=name, middle=middle)
        evaluate(bundle, images, ledger=ledger, out=models[-1])
    alone, comparison = compare(models), compare([folder / "group-good", *models])
    pairs = [pair for pair in comparison.pairs if (pair.a, pair.b) == ("tool", "default")]
    assert len(pairs) == 4
    for pair, expected in zip(pairs, alone.pairs, strict=True):
        assert (pair.metric, pair.test, pair.difference, pair.p) == (
            expected.metric, expected.test, expected.difference, expected.p
        )  # fmt: skip
        assert "obuchowski" not in pair.test
        with_group = [each for each in comparison.pairs if each.metric == pair.metric]
        assert [each.p_holm for each in with_group] == holm([each.p for each in with_group])
        assert sum(each.test.startswith("obuchowski") for each in with_group) == 2
    text = " ".join(comparison.sentences)
    assert "tool and default have one evaluation each: a difference applies to these predictions." in text
    assert "a test of two single models includes none." in text
    assert "training each" not in text


def test_runs_of_one_recipe_with_the_same_seed_are_compared_as_single_runs(folder):
    again = shutil.copytree(folder / "group-good/seed-0", folder / "again")
    comparison = compare([folder / "group-good/seed-0", again])
    assert comparison.groups == ()
    assert {pair.test for pair in comparison.pairs if pair.metric == "accuracy"} == {
        "mcnemar, exact, clustered by patient (permutation)"
    }


def test_runs_on_other_images_are_not_grouped(folder):
    file = folder / "group-good/seed-2/run.json"
    record = json.loads(file.read_text())
    record["counts"] = {"train": {"NORMAL": 41}}
    file.write_text(json.dumps(record))
    comparison = compare([folder / "group-good"])
    (group,) = comparison.groups
    assert group.seeds == (0, 1)
    assert {(pair.a, pair.b) for pair in comparison.pairs} == {("group-good", "group-good/seed-2")}


def test_recipes_with_other_settings_are_different_groups_named_after_their_folders(folder):
    for seed in range(3):
        path = shutil.copytree(folder / f"group-good/seed-{seed}", folder / f"slower/seed-{seed}") / "run.json"
        record = json.loads(path.read_text())
        record["recipe"]["optimizer"] = {"learning_rate": 0.0001}
        path.write_text(json.dumps(record))
    comparison = compare([folder / "group-good", folder / "slower"])
    assert [group.name for group in comparison.groups] == ["group-good", "slower"]


@pytest.mark.parametrize(
    ("before", "is_group"), [({}, True), ({"early_stopping": None}, True), ({"early_stopping": 2}, False)]
)
def test_field_that_an_older_record_lacks_has_its_default(folder, before, is_group):
    for seed in range(2):
        path = folder / f"group-good/seed-{seed}/run.json"
        record = json.loads(path.read_text())
        record["recipe"] = read_recipe("quick").model_dump(mode="json")
        assert record["recipe"]["training"].pop("early_stopping") is None
        record["recipe"]["training"] |= {"seed": seed} | (before if seed == 0 else {})
        path.write_text(json.dumps(record))
    groups = compare([folder / "group-good/seed-0", folder / "group-good/seed-1"]).groups
    assert [group.seeds for group in groups] == ([(0, 1)] if is_group else [])


def test_records_with_a_field_of_a_newer_version_are_compared_as_they_are(folder):
    for seed, value in enumerate(("a", "a", "b")):
        path = folder / f"group-good/seed-{seed}/run.json"
        record = json.loads(path.read_text())
        record["recipe"]["of_a_newer_version"] = value
        path.write_text(json.dumps(record))
    (group,) = compare([folder / "group-good"]).groups
    assert group.seeds == (0, 1)


def test_groups_and_single_runs_are_in_the_order_given(folder):
    targets = [
        folder / "group-single",
        folder / "group-poor/seed-1",
        folder / "group-good/seed-0",
        folder / "group-poor/seed-0",
    ]
    runs = read_evaluated(targets, "test", "half", ScoringOptions(), None)
    assert [(each.name, each.members) for each in group_runs(runs)] == [
        ("group-single", (0,)), ("group-poor", (1, 3)), ("group-good", (2,)),
    ]  # fmt: skip


def test_auroc_of_a_group_is_the_mean_with_the_covariance_of_delong():
    generator, labels = np.random.default_rng(0), np.arange(60) < 30
    logits = labels + generator.normal(size=(4, 60)) + generator.normal(size=60)
    patients = [f"p{number // 2}" for number in range(60)]
    scores = [RunScores(str(seed), (row > 0) == labels, row) for seed, row in enumerate(logits)]
    scoring = RunScoring(scores, labels, patients)
    area, covariance = delong_covariance(logits, labels, patient_groups(patients, 60))
    expected = replicates_mean(area[1:], covariance[1:, 1:], n=60, method="")
    found = scoring.mean("auroc", (1, 2, 3))
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    sensitivity = scoring.mean("sensitivity", (0, 1))
    assert sensitivity.value == pytest.approx((logits[:2, :30] > 0).mean())
    assert sensitivity.n == 30


def test_mean_without_a_covariance_is_stated_without_an_interval():
    """One patient with pneumonia: DeLong's covariance needs two."""
    labels = np.array([True, False, False])
    logits = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    scoring = RunScoring(
        [RunScores(str(seed), (row > 0.5) == labels, row) for seed, row in enumerate(logits)], labels, [""] * 3
    )
    auroc = scoring.mean("auroc", (0, 1))
    assert (auroc.value, auroc.low) == (pytest.approx(0.75), None)
    assert auroc.reason.startswith("the variance of the AUROC needs 2 patients in each class")
    sensitivity = scoring.mean("sensitivity", (0, 1))
    assert (sensitivity.value, sensitivity.low) == (1.0, None)
    assert str(sensitivity) == "1.000 (no interval: the variance of a proportion needs 2 patients; there is 1)"


def test_metric_of_a_missing_label_is_undefined_with_the_reason():
    labels = np.ones(10, dtype=bool)
    scores = [RunScores(str(seed), labels, np.arange(10.0)) for seed in range(2)]
    scoring = RunScoring(scores, labels, [str(number) for number in range(10)])
    for metric in ("auroc", "specificity"):
        found = scoring.mean(metric, (0, 1))
        assert (found.value, found.low) == (None, None)
        assert found.reason
        assert scoring.difference(metric, (0,), (1,)) == (dataclasses.replace(found), None)


@pytest.mark.slow
def test_table_and_page_have_means_and_spread(folder, tmp_path):
    comparison = compare([folder / "group-good", folder / "group-poor"], out=tmp_path / "out")
    rows = [row for row in comparison.rows() if row["run"] == "group-good (mean of 3 seeds)"]
    assert {"accuracy", "auroc", "brier"} <= {row["metric"] for row in rows}
    assert "group-good (mean of 3 seeds),accuracy," in (tmp_path / "out/comparison.csv").read_text()
    runs = [folder / f"{recipe}/seed-{seed}" for recipe in MIDDLES for seed in range(3)]
    page = write_comparison_page(comparison, runs, tmp_path / "report.html").read_text()
    section = page.partition('id="seeds"')[2].partition("</section>")[0]
    spread = comparison.groups[0].metrics["accuracy"]
    assert f"{spread.sd:.4f}" in section
    assert f"{spread.minimum:.3f}" in section
    assert "group-good, 3 seeds" in section
    assert "group-good, mean of 3 seeds: accuracy" in comparison._repr_html_()
    assert isinstance(spread.mean, Interval)


def test_predictive_values_are_stated_for_another_prevalence(folder):
    comparison = compare([folder / "group-good", folder / "group-single"], prevalence=0.1)
    single = comparison.runs[-1]
    found = single.test["precision_at_prevalence"]
    sensitivity, specificity = single.test["sensitivity"].value, single.test["specificity"].value
    expected = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))  # Bayes' theorem
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    mean = np.mean([run.test["precision_at_prevalence"].value for run in comparison.runs[:3]])
    group, alone = (each for each in comparison.sentences if "at a prevalence of 0.1" in each)
    assert group.startswith(f"group-good: at a prevalence of 0.1 and the operating point half, precision {mean:.3f} (")
    assert alone.startswith(f"group-single: at a prevalence of 0.1 and the operating point half, precision {found}, ")
    assert "precision_at_prevalence" not in compare([folder / "group-single"]).runs[0].test


def test_checklist_quotes_the_mean_of_seeds_and_no_seed_alone(folder):
    made = report([folder / "group-good", folder / "group-single"], checklists=["claim"])
    performance = [
        fact.text for answer in made.checklists["claim"].answers for fact in answer.facts if "AUROC 0." in fact.text
    ]
    assert performance
    mean = made.comparison.groups[0].metrics["auroc"]
    for text in performance:
        assert f"group-good, mean of 3 seeds (0, 1, 2): AUROC {mean.mean} (standard deviation {mean.sd:.4f})" in text
        assert "group-good/seed-" not in text
        assert "group-single: AUROC" in text


def test_items_of_a_checklist_are_counted_once(folder):
    checklist = report([folder / "group-good"], checklists=["claim"]).checklists["claim"]
    numbers = [int(word) for word in checklist.counts().split() if word.isdigit()]
    prefilled, total, partly, still_open = numbers
    assert prefilled + partly + still_open == total == len(checklist.answers)
    assert prefilled + partly == sum(bool(answer.facts) for answer in checklist.answers)


def test_group_has_one_name_in_findings_tables_and_figures(folder):
    (folder / "group-good").rename(folder / "renamed")  # the recipe is still group-good
    made = report([folder / "renamed", folder / "group-single"])
    assert made.comparison.sentences[0].startswith("group-good, 3 seeds")
    assert made.tables["metrics"].columns[1] == "group-good (mean of 3 seeds)"
    assert made.tables["seeds"].rows[0][0] == "group-good"
    (axes,) = made.figures["metric-accuracy"].figure.axes
    assert axes.get_yticklabels()[0].get_text() == "group-good"


def test_metrics_of_seeds_are_their_mean_in_table_page_and_figure(folder):
    made = report([folder / "group-good", folder / "group-single"])
    table = made.tables["metrics"]
    assert table.columns == ("Metric", "group-good (mean of 3 seeds)", "group-single")
    metrics, single = made.comparison.groups[0].metrics, made.comparison.runs[-1].test
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Accuracy"] == (metrics["accuracy"], single["accuracy"])
    assert rows["Brier score"] == (metrics["brier"], single["brier"])

    text = to_markdown(table)
    accuracy, brier = metrics["accuracy"].mean, metrics["brier"]
    assert f"| Accuracy | {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}) |" in text
    assert f"| Brier score | {brier.mean.value:.3f} (SD {brier.sd:.3f}) |" in text
    row = next(row for row in csv.DictReader(io.StringIO(to_csv(table))) if row["Metric"] == "Brier score")
    title = "group-good (mean of 3 seeds)"
    assert (float(row[title]), float(row[f"{title}, standard deviation"])) == (brier.mean.value, brier.sd)
    assert float(row["group-single"]) == single["brier"].value

    section = made.page().partition('<section id="metrics">')[2].partition("</section>")[0]
    head = section.partition("</thead>")[0]
    assert "group-good (mean of 3 seeds)" in head
    assert "seed-0" not in head
    assert f"SD {brier.sd:.3f}" in section
    (axes,) = made.figures["metric-accuracy"].figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["group-good", "group-single"]
    points = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(each) for each in points] == [[run.test["accuracy"].value for run in made.comparison.runs[:3]]]


def test_metrics_whose_means_have_intervals_are_named_in_one_note_only(folder):
    made = report([folder / "group-good"], checklists=["claim"])
    sentence = "eans have intervals for accuracy, AUROC, sensitivity and specificity only"
    assert to_markdown(made.tables["seeds"]).count(sentence) == 1
    assert to_markdown(made.tables["metrics"]).count(sentence) == 1
    assert sentence not in to_markdown(made.tables["checklist-claim"])
    page = made.page()
    seeds = page.partition('<section id="seeds">')[2].partition("</section>")[0]
    assert seeds.count(sentence) == 1
    compared = compare([folder / "group-good"], prevalence=0.1)
    assert not any(sentence in each for each in compared.sentences)
    spread = compared.groups[0].metrics["precision_at_prevalence"]
    assert any(
        f"precision {spread.mean.value:.3f} (standard deviation {spread.sd:.4f})" in each for each in compared.sentences
    )


def test_metric_that_is_undefined_for_a_seed_has_no_mean_in_the_table(folder):
    comparison = compare([folder / "group-good"])
    group = comparison.groups[0]
    runs = [(run.name, run.intervals()) for run in comparison.runs]
    missing = dataclasses.replace(runs[1][1]["f1"], value=None, low=None, high=None, reason="no positives")
    runs[1] = (runs[1][0], {**runs[1][1], "f1": missing})
    metrics = {key: spread for key, spread in group.metrics.items() if key != "f1"}
    (column,) = metric_columns([dataclasses.replace(group, metrics=metrics)], runs)
    assert (column.value("f1").value, column.value("f1").reason) == (None, "no value for group-good/seed-1")


def test_checklists_state_what_applies_to_several_seeds_once(folder):
    (claim,) = report([folder / "group-good"], checklists=["claim"]).checklists.values()
    answers = {each.item.number: each.text for each in claim.answers}
    names = "group-good/seed-0, group-good/seed-1, group-good/seed-2"
    for number in ("9", "20", "22", "24", "26"):
        assert answers[number].startswith(f"{names}: "), answers[number]
        assert answers[number].count("seed-0") == 1
    assert answers["25"].startswith(
        "group-good/seed-0 (seed 0), group-good/seed-1 (seed 1), group-good/seed-2 (seed 2): "
    )
