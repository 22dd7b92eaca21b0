"""Cross-validations: means over folds and paired tests by fold; folds are neither pooled nor mixed with other runs."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats
from sklearn.metrics import roc_auc_score

from pneumoscope.bundle.card import short_hash
from pneumoscope.cli import cli
from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.data.folds import Fold, select_fold
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.comparison.cross_validation import find_folds, is_cross_validation, summarize_folds
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.reporting.report_files import report
from pneumoscope.runs.evaluations import read_predictions

FOLDS = 3
MIDDLES = {"cv-good": (122, 125, 128), "cv-poor": (150, 165, 158)}  # in gray levels: 125 is the best


def make_fold(maker, images, recipe, number, middle):
    run = maker.run(f"{recipe}/fold-{number}", recipe=recipe, middle=middle)
    manifest = select_fold(load_manifest(images), Fold(number, FOLDS), 0)
    manifest.save(run / "manifest.csv", replace=True)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(
        json.dumps(record | {"fold": number, "folds": FOLDS, "counts": manifest.counts(), "seed": 0})
    )
    seen = {split: [short_hash(image.sha256) for image in manifest.split(split)] for split in ("train", "validation")}
    card = json.loads((run / "bundle/card.json").read_text())
    (run / "bundle/card.json").write_text(json.dumps(card | {"seen": seen}))
    return run


@pytest.fixture(scope="module")
def made(shared_maker):
    """Three folds of a good and of a poor recipe, evaluated on their validation images, and the images."""
    images = shared_maker.images("folded", split="train", normal=60, pneumonia=90)
    for recipe, middles in MIDDLES.items():
        for number, middle in enumerate(middles, start=1):
            evaluate(
                make_fold(shared_maker, images, recipe, number, middle), images, split="validation",
                operating_points=("half",), ledger=shared_maker.root / "folded.jsonl",
            )  # fmt: skip
    return shared_maker.root / "runs", images


@pytest.fixture
def folder(made, tmp_path):
    for recipe in MIDDLES:
        shutil.copytree(made[0] / recipe, tmp_path / "runs" / recipe)
    return tmp_path / "runs"


def of_fold(folder, recipe, number):
    return json.loads((folder / recipe / f"fold-{number}/evaluation/validation/evaluation.json").read_text())


def accuracies(folder, recipe):
    found = [of_fold(folder, recipe, number) for number in range(1, FOLDS + 1)]
    return [each["operating_points"]["half"]["metrics"]["accuracy"]["value"] for each in found]


def test_metrics_are_means_of_the_folds_with_an_interval_for_shared_training_images(folder):
    group = summarize_folds(folder / "cv-good", "validation", "half")
    values = accuracies(folder, "cv-good")
    spread = group.metrics["accuracy"]
    assert (spread.mean.value, spread.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (spread.minimum, spread.maximum) == (min(values), max(values))
    usual = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ratio = np.mean(
        [of_fold(folder, "cv-good", k)["n"] / (150 - of_fold(folder, "cv-good", k)["n"]) for k in (1, 2, 3)]
    )
    assert spread.mean.value - spread.mean.low == pytest.approx(
        (usual.high - usual.low) / 2 * np.sqrt(1 + FOLDS * ratio), rel=1e-6
    )
    assert spread.mean.n == 150
    assert (group.folds, group.unit) == ((1, 2, 3), "folds")


def test_auroc_is_the_mean_within_folds_and_not_that_of_pooled_scores(folder):
    """The networks differ by a constant, which changes no ranking within a fold, but that of pooled scores."""
    group = summarize_folds(folder / "cv-poor", "validation", "half")
    within = [of_fold(folder, "cv-poor", number)["metrics"]["auroc"]["value"] for number in range(1, FOLDS + 1)]
    assert group.metrics["auroc"].mean.value == pytest.approx(np.mean(within))
    folds = [read_predictions(folder / f"cv-poor/fold-{k}/evaluation/validation/predictions.csv") for k in (1, 2, 3)]
    images = [image for fold in folds for image in fold]
    pooled = roc_auc_score([image.label == "PNEUMONIA" for image in images], [image.logit for image in images])
    assert abs(pooled - np.mean(within)) > 0.001


def test_metrics_of_probabilities_are_left_out_because_the_images_fitted_the_calibration(folder):
    metrics = set(summarize_folds(folder / "cv-good", "validation", "half").metrics)
    assert not metrics & {"brier", "expected_calibration_error", "calibration_slope", "calibration_intercept"}
    assert {"accuracy", "auroc", "auprc", "sensitivity", "specificity", "mcc"} <= metrics


def test_recipes_are_compared_fold_by_fold(folder):
    comparison = compare([folder / "cv-good", folder / "cv-poor"])
    assert comparison.is_cross_validation
    assert (comparison.images["n"], comparison.images["counts"]) == (150, {"NORMAL": 60, "PNEUMONIA": 90})
    assert comparison.images["patients"] == 75
    pair = comparison.pairs[0]
    assert (pair.a, pair.b, pair.metric) == ("cv-good", "cv-poor", "accuracy")
    a, b = accuracies(folder, "cv-good"), accuracies(folder, "cv-poor")
    assert pair.difference.value == pytest.approx(np.mean(a) - np.mean(b))
    assert pair.p > stats.ttest_rel(a, b).pvalue
    assert "Nadeau-Bengio, corrected resampled t" in pair.sentence
    text = " ".join(comparison.sentences)
    assert "cv-good, 3 folds (seed 0): mean accuracy" in text
    assert "networks trained on 67% of the images" in text
    assert "fold-" not in text


def test_means_are_called_too_high_only_of_recipes_whose_validation_images_select_the_epoch(folder):
    targets = [folder / "cv-good", folder / "cv-poor"]

    def select_last(recipe):
        for file in (folder / recipe).glob("fold-*/run.json"):
            record = json.loads(file.read_text())
            record["recipe"]["training"]["select"] = "last"
            file.write_text(json.dumps(record))

    def training_sentence():
        return next(sentence for sentence in compare(targets).sentences if "Means over 3 folds" in sentence)

    assert "selected its epoch, so the means are slightly too high. Test" in training_sentence()
    select_last("cv-good")
    assert "selected its epoch, so the means of cv-poor are slightly too high. Test" in training_sentence()
    select_last("cv-poor")
    assert "epoch" not in training_sentence()
    assert "Test images were not used." in training_sentence()


@pytest.mark.slow
def test_page_and_tables_have_the_folds_and_no_calibration(folder, tmp_path):
    targets = [folder / "cv-good", folder / "cv-poor"]
    comparison = compare(targets, out=tmp_path / "out")
    assert "cv-good (mean of 3 folds),accuracy," in (tmp_path / "out/comparison.csv").read_text()
    runs = [folder / f"{recipe}/fold-{number}" for recipe in MIDDLES for number in (1, 2, 3)]
    page = write_comparison_page(comparison, runs, tmp_path / "report.html").read_text()
    assert "150 validation images, out of fold" in page
    assert 'id="calibration"' not in page
    assert "cv-good, 3 folds" in page
    made = report(targets, checklists=["tripod-ai", "claim"])
    assert "folds" in made.tables
    assert not {"reliability", "decision-curves"} & {*made.tables, *made.figures}
    answers = {item.item.number: item.text for item in made.checklists["claim"].answers}
    assert "Brier" not in answers["28"]
    assert "reliability" not in answers["28"]
    assert answers["14"].startswith("Validation images: ")
    used = {place for item in made.checklists["tripod-ai"].answers for place in item.places}
    assert used <= set(re.findall(r'<section id="([a-z_]+)"', made.page()))


def with_evaluation_of_another_fold(folder):
    evaluation = folder / "cv-poor/fold-1/evaluation"
    shutil.rmtree(evaluation)
    shutil.copytree(folder / "cv-poor/fold-2/evaluation", evaluation)
    return folder / "cv-poor/fold-1"


@pytest.mark.slow
def test_figures_are_those_of_the_report(folder):
    runs = [folder / "cv-good", folder / "cv-poor"]
    found, expected = (
        {name: figure._repr_svg_() for name, figure in made.figures.items()} for made in (compare(runs), report(runs))
    )
    assert {"flow-5", "roc", "differences-auroc"} <= set(found)
    assert found == expected


def test_fold_that_was_evaluated_on_its_training_images_is_an_error(folder):
    fold = with_evaluation_of_another_fold(folder)
    with pytest.raises(RunError, match=r"fold-1' was evaluated on 50 of its own training images") as caught:
        summarize_folds(folder / "cv-poor", "validation", "half")
    assert f"pneumoscope evaluate {fold} --data DATA --split validation --force" in caught.value.hint


def test_fold_that_was_evaluated_on_other_images_than_its_own_is_an_error(folder):
    """Even if its bundle, which lists the training images, is missing."""
    shutil.rmtree(with_evaluation_of_another_fold(folder) / "bundle")
    with pytest.raises(
        RunError, match=r"fold-1' was evaluated on 50 images that are not the 50 validation images of its"
    ):
        compare([folder / "cv-good", folder / "cv-poor"])


def test_command_evaluates_each_fold_on_its_own_images_although_a_csv_states_a_validation_split(folder, made, tmp_path):
    """The file that was divided into folds has the validation images of the second one, training images of the others."""
    expected = accuracies(folder, "cv-good")
    for number in range(1, FOLDS + 1):
        shutil.rmtree(folder / f"cv-good/fold-{number}/evaluation")
    table = made[1] / f"{tmp_path.name}.csv"
    select_fold(load_manifest(made[1]), Fold(2, FOLDS), 0).save(table)
    result = CliRunner().invoke(cli, ["evaluate", str(folder / "cv-good"), "--data", str(table)])
    assert result.exit_code == 0, result.output
    assert f"cv-good, 3 folds (seed 0): mean accuracy {np.mean(expected):.3f}" in result.stdout
    remark = "With 3 folds, the variance between folds has 2 degrees of freedom, and intervals can be very wide"
    assert result.stdout.count(remark) == 1
    for number in range(1, FOLDS + 1):
        own = load_manifest(folder / f"cv-good/fold-{number}/manifest.csv").split("validation")
        images = read_predictions(folder / f"cv-good/fold-{number}/evaluation/validation/predictions.csv")
        assert {image.sha256 for image in images} == {image.sha256 for image in own}


def test_other_folds_cannot_be_compared(folder):
    fold = with_evaluation_of_another_fold(folder)
    shutil.rmtree(fold / "bundle")
    (fold / "manifest.csv").unlink()
    with pytest.raises(RunError, match="was evaluated on other images") as caught:
        compare([folder / "cv-good", folder / "cv-poor"])
    assert caught.value.hint == "Folds are paired: train both recipes with the same data, --folds and training.seed"


def test_cross_validation_cannot_be_compared_with_a_run(folder):
    with pytest.raises(UsageError, match=r"fold-1' is not a cross-validation"):
        compare([folder / "cv-good", folder / "cv-poor/fold-1"])


def test_missing_fold_is_an_error_that_states_how_to_finish(folder):
    shutil.rmtree(folder / "cv-good/fold-2")
    with pytest.raises(RunError, match=r"has 2 of 3 folds; fold 2 is missing. Finish it: .* --folds 3 .* --resume"):
        find_folds(folder / "cv-good")
    assert is_cross_validation(folder / "cv-good")


def test_folds_beside_other_runs_are_an_error(folder, maker):
    shutil.copytree(maker.run("other"), folder / "cv-good/seed-7")
    with pytest.raises(RunError, match=r"has other runs than those of 3 folds: .*seed-7"):
        find_folds(folder / "cv-good")


def test_runs_with_several_seeds_are_not_a_cross_validation(folder, maker):
    maker.run("seeds/seed-0")
    assert not is_cross_validation(maker.root / "runs/seeds")
    assert not is_cross_validation(folder / "cv-good/fold-1")


def test_command_evaluates_each_fold_on_its_validation_images_and_prints_the_mean(folder, made, monkeypatch, tmp_path):
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    expected = accuracies(folder, "cv-good")
    for number in range(1, FOLDS + 1):
        shutil.rmtree(folder / f"cv-good/fold-{number}/evaluation")
    command = ["evaluate", str(folder / "cv-good"), "--data", str(made[1])]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert f"fold-2: accuracy {expected[1]:.3f}" in result.stdout
    assert f"cv-good, 3 folds (seed 0): mean accuracy {np.mean(expected):.3f}" in result.stdout
    assert not (tmp_path / "ledger.jsonl").exists()  # no test image was used
    found = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert [each["split"] for each in found["evaluations"]] == 3 * ["validation"]
    assert found["mean"]["metrics"]["accuracy"]["mean"]["value"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("split", ["test", "all"])
def test_command_evaluates_folds_on_no_other_images(folder, made, split):
    result = CliRunner().invoke(cli, ["evaluate", str(folder / "cv-good"), "--data", str(made[1]), "--split", split])
    assert isinstance(result.exception, UsageError)
    assert f"not on the split {split!r}" in str(result.exception)


@pytest.mark.parametrize(
    "options",
    [
        ["--evaluation", "north"], ["--data", "images"], ["--split", "test"], ["--label-column", "finding"],
        ["--path-column", "Image"], ["--ledger", "ledger.jsonl"],
    ],
    ids=lambda options: options[0],
)  # fmt: skip
def test_command_compares_folds_without_options_that_they_do_not_have(folder, tmp_path, options):
    result = CliRunner().invoke(cli, ["compare", str(folder / "cv-good"), *options, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, UsageError)
    assert f"{options[0]} does not work with a cross-validation" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_compares_and_reports_folds_at_an_operating_point(folder, tmp_path):
    command = [str(folder / "cv-good"), "--operating-point", "half", "--out"]
    result = CliRunner().invoke(cli, ["compare", *command, str(tmp_path / "out"), "--prevalence", "0.1"])
    assert result.exit_code == 0, result.output
    assert "at a prevalence of 0.1" in result.stdout
    result = CliRunner().invoke(cli, ["report", *command, str(tmp_path / "report"), "--evaluation", "north"])
    assert "--evaluation does not work with a cross-validation" in str(result.exception)
