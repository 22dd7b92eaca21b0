"""Cross-validations of models of several classes: means over folds, and paired tests by fold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats
from sklearn import metrics
from tests.conftest import GRAY_CLASSES

from pneumoscope.bundle.card import short_hash
from pneumoscope.cli import cli
from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.data.folds import Fold, select_fold
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.multiclass.compare import compare_multiclass
from pneumoscope.evaluation.multiclass.cross_validation import summarize_class_folds
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.reporting.multiclass_report import report_multiclass
from pneumoscope.runs.multiclass_evaluations import read_multiclass_evaluation_folder

FOLDS = 3
EDGES = {"class-good": (100.0, 105.0, 110.0), "class-poor": (65.0, 82.0, 72.0)}  # in gray levels: 105 is the best


@pytest.fixture(scope="module")
def folder(shared_maker):
    """Three folds of a good and of a poor recipe, evaluated on their validation images."""
    data = shared_maker.classes("class-folds", count=40, split="train")
    for recipe, edges in EDGES.items():
        for number, edge in enumerate(edges, start=1):
            manifest = select_fold(load_manifest(data), Fold(number, FOLDS), 0)
            seen = {s: [short_hash(image.sha256) for image in manifest.split(s)] for s in ("train", "validation")}
            run = shared_maker.multiclass_run(
                f"{recipe}/fold-{number}", recipe=recipe, edges=(edge, 150.0), seen=seen, thresholds=None
            )
            manifest.save(run / "manifest.csv", replace=True)
            record = json.loads((run / "run.json").read_text())
            (run / "run.json").write_text(
                json.dumps(record | {"fold": number, "folds": FOLDS, "counts": manifest.counts()})
            )
            evaluate_multiclass(run, data, split="validation", ledger=shared_maker.root / "class-folds.jsonl")
    return shared_maker.root / "runs"


def values(folder, recipe, metric):
    found = []
    for number in range(1, FOLDS + 1):
        _, images = read_multiclass_evaluation_folder(folder / f"{recipe}/fold-{number}/evaluation/validation")
        y = [GRAY_CLASSES.index(image.label) for image in images]
        p = np.array([image.probabilities for image in images])
        if metric == "accuracy":
            found.append(metrics.accuracy_score(y, p.argmax(1)))
        else:
            found.append(metrics.roc_auc_score(y, p, multi_class="ovr"))
    return found


@pytest.mark.parametrize("metric", ["accuracy", "macro_auroc"])
def test_metrics_are_means_of_the_folds_with_an_interval_for_shared_training_images(folder, metric):
    group = summarize_class_folds(folder / "class-good", "validation")
    expected, spread = values(folder, "class-good", metric), group.metrics[metric]
    assert (spread.mean.value, spread.sd) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert (spread.minimum, spread.maximum) == pytest.approx((min(expected), max(expected)))
    usual = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
    # Each fold validates on a third of the images, so that the ratio of Nadeau and Bengio is 1/2.
    half_width = (usual.high - usual.low) / 2 * np.sqrt(1 + FOLDS / 2)
    assert spread.mean.value - spread.mean.low == pytest.approx(half_width, rel=0.05)
    assert (spread.mean.n, group.folds) == (120, (1, 2, 3))


@pytest.mark.slow
def test_figures_are_those_of_the_report(folder):
    runs = [folder / "class-good", folder / "class-poor"]
    found, expected = (
        {name: figure._repr_svg_() for name, figure in made.figures.items()}
        for made in (compare_multiclass(runs), report_multiclass(runs))
    )
    assert {"confusion-5", "roc-0", "differences-accuracy"} <= set(found)
    assert found == expected


def test_metrics_of_fitted_probabilities_are_left_out(folder):
    found = set(summarize_class_folds(folder / "class-good", "validation").metrics)
    assert not found & {"brier", "log_loss", "expected_calibration_error"}
    assert {"accuracy", "balanced_accuracy", "macro_auroc", "macro_f1"} <= found


def test_recipes_are_compared_fold_by_fold(folder):
    comparison = compare_multiclass([folder / "class-good", folder / "class-poor"])
    assert comparison.is_cross_validation
    assert (comparison.images["n"], comparison.images["counts"]) == (120, dict.fromkeys(GRAY_CLASSES, 40))
    assert [(pair.a, pair.b, pair.metric) for pair in comparison.pairs] == [
        ("class-good", "class-poor", "accuracy"),
        ("class-good", "class-poor", "macro_auroc"),
    ]
    for pair in comparison.pairs:
        a, b = (values(folder, recipe, pair.metric) for recipe in EDGES)
        difference = np.subtract(a, b)
        assert pair.difference.value == pytest.approx(difference.mean())
        error = difference.std(ddof=1) * np.sqrt(1 / FOLDS + 1 / 2)
        assert pair.p == pytest.approx(2 * stats.t.sf(abs(difference.mean()) / error, FOLDS - 1), rel=0.1)
    text = " ".join(comparison.sentences)
    assert "class-good, 3 folds (seed 0): mean accuracy" in text
    assert "Nadeau-Bengio" in text
    assert "fold-" not in text


def test_folds_are_not_compared_with_other_runs(folder, maker):
    run = maker.multiclass_run("single")
    with pytest.raises(UsageError, match="single' is not a cross-validation"):
        compare_multiclass([folder / "class-good", run])


def test_folds_evaluated_on_their_training_images_are_refused(folder, tmp_path):
    import shutil

    copied = shutil.copytree(folder / "class-good", tmp_path / "class-good")
    shutil.rmtree(copied / "fold-1/evaluation")
    shutil.copytree(copied / "fold-2/evaluation", copied / "fold-1/evaluation")
    with pytest.raises(RunError, match="was evaluated on 40 of its own training images"):
        summarize_class_folds(copied, "validation")


@pytest.mark.slow
def test_commands_take_folds(folder, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(cli, list(map(str, arguments)), standalone_mode=False)

    data = folder.parent / "class-folds" / "images.csv"
    evaluated = invoke("evaluate", folder / "class-good", "--data", data)
    assert evaluated.exception is None, evaluated.output
    assert "fold-2: accuracy " in evaluated.stdout
    assert ", macro AUROC " in evaluated.stdout
    assert "class-good, 3 folds (seed 0): mean accuracy" in evaluated.stdout
    mean = json.loads(invoke("evaluate", folder / "class-good", "--data", data, "--json").stdout)["mean"]
    assert mean["metrics"]["accuracy"]["mean"]["value"] == pytest.approx(
        np.mean(values(folder, "class-good", "accuracy"))
    )
    compared = invoke("compare", folder / "class-good", folder / "class-poor", "--out", tmp_path / "compared")
    assert compared.exception is None, compared.output
    page = (tmp_path / "compared" / "report.html").read_text()
    assert "n&nbsp;=&nbsp;120 images of all folds" in page
    assert "<h2>Folds</h2>" in page
    reported = invoke("report", folder / "class-good", "--out", tmp_path / "reported")
    assert reported.exception is None, reported.output
    assert (tmp_path / "reported" / "tables" / "folds.csv").is_file()
    refused = invoke("compare", folder / "class-good", "--data", data, "--out", tmp_path / "refused")
    assert isinstance(refused.exception, UsageError)
