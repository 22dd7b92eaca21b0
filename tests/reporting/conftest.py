"""Run folders of synthetic predictions with known differences, and their comparison."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.core.comparison import Comparison, PairedTest, ReferenceRow, ReferenceTable, RunSummary
from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import to_json
from pneumoscope.core.results import Confusion, Evaluation, OperatingPointResult, PredictiveValues, ScoredImage
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.statistics.calibration import calibration_intervals, weighted_brier, weighted_calibration_error
from pneumoscope.statistics.decision_curve import decision_curve
from pneumoscope.statistics.intervals import newcombe, paired_difference, proportion, wilson
from pneumoscope.statistics.likelihood_ratios import predictive_values
from pneumoscope.statistics.metrics import confusion, threshold_metrics
from pneumoscope.statistics.multiple_testing import holm
from pneumoscope.statistics.paired import delong_test, mcnemar_exact
from pneumoscope.statistics.roc import auroc_interval, weighted_auprc

# Markup, a formula, and more characters than fit into a column.
MARKUP_NAME = '<script>alert("$x$")</script>-a-run-whose-name-is-too-long-for-any-column-of-any-table'
IMAGES_SHA256 = "5f2c" * 16
# Name, network, optimizer, batch size, image size and published counts of the runs that the synthetic ones imitate.
PUBLISHED = (
    ("alexnet-sgd", "alexnet", "sgd", 64, 224, Confusion(386, 4, 112, 122)),
    ("alexnet-adam", "alexnet", "adam", 64, 224, Confusion(363, 27, 213, 21)),
    ("alexnet-adam-32", "alexnet", "adam", 32, 224, Confusion(389, 1, 142, 92)),
    ("vgg19-rmsprop", "vgg19", "rmsprop", 64, 64, Confusion(382, 8, 176, 58)),
    ("vgg19-adam", "vgg19", "adam", 64, 64, Confusion(384, 6, 168, 66)),
    ("vgg19-adam-32", "vgg19", "adam", 32, 64, Confusion(385, 5, 177, 57)),
)
# Class separation and bias of the logits of each synthetic run.
SYNTHETIC = ((0.75, 0.9), (1.2, 0.1), (1.05, 0.8), (1.15, 0.5), (1.1, 0.5), (1.3, 0.4))
RESAMPLES = 100
ComparisonAndFolders = tuple[Comparison, list[Path]]


@dataclasses.dataclass(frozen=True)
class Images:
    """Images that all synthetic runs score."""

    positive: np.ndarray
    etiology: list[str]
    patient: list[str]
    difficulty: np.ndarray


def make_images(n: int, normal: int, rng: np.random.Generator) -> Images:
    positive = np.arange(n) >= normal
    etiology = ["normal" if not p else ("bacteria" if i % 5 < 3 else "virus") for i, p in enumerate(positive)]
    patient = [f"{name}-{i if i % 4 else i - 1}" for i, name in enumerate(etiology)]
    return Images(positive, etiology, patient, rng.normal(size=n))


def score_images(images: Images, separation: float, bias: float, rng: np.random.Generator) -> list[ScoredImage]:
    logits = (
        separation * (2.2 * images.positive - 1.1)
        + 0.8 * images.difficulty
        + rng.normal(size=len(images.positive))
        + bias
    )
    logits *= 1.8
    scored = []
    for i, logit in enumerate(logits):
        label = "PNEUMONIA" if images.positive[i] else "NORMAL"
        score, probability = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-0.8 * logit + 0.6))
        scored.append(
            ScoredImage(f"test/{label}/{images.patient[i]}_{i}.jpeg", f"{i:064x}", images.patient[i], label,
                       images.etiology[i], float(logit), float(score), float(probability))
        )  # fmt: skip
    return scored


def evaluate(name: str, images: Images, scored: list[ScoredImage]) -> Evaluation:
    logit, score, probability = (
        np.array([getattr(image, field) for image in scored]) for field in ("logit", "score", "probability")
    )
    y, etiologies = images.positive, np.array(images.etiology)
    operating_points = {}
    for point, threshold, rule in (
        ("half", 0.5, "fixed"),
        ("balanced", 0.731234, "highest Youden index on 782 validation images"),
        ("rule_out", 0.118811, "sensitivity of at least 0.99 on 782 validation images"),
    ):
        predicted = score >= threshold
        operating_points[point] = OperatingPointResult(
            threshold,
            rule,
            confusion(predicted, y),
            threshold_metrics(predicted, y, images.patient, resamples=RESAMPLES),
            {name: proportion((predicted == y)[etiologies == name], None) for name in ("normal", "bacteria", "virus")},
            predictive_values=PredictiveValues(0.1, **predictive_values(predicted, y, images.patient, 0.1)),
        )
    weights = np.ones((1, len(y)))
    ece, loss = (float(metric(probability, y, weights)[0]) for metric in (weighted_calibration_error, weighted_brier))
    precision = float(weighted_auprc(logit, y, weights)[0])
    bootstrap = {"method": "patient bootstrap", "n": len(y), "seed": 0}
    return Evaluation(
        name=name,
        split="test",
        images_sha256=IMAGES_SHA256,
        n=len(y),
        patients=len(set(images.patient)),
        counts={"NORMAL": int((~y).sum()), "PNEUMONIA": int(y.sum())},
        bundle_sha256="ab" * 32,
        recipe={},
        metrics={
            "auroc": auroc_interval(logit, y, images.patient),
            "auprc": Interval(precision, precision - 0.011, min(1.0, precision + 0.008), **bootstrap),
            "brier": Interval(loss, loss - 0.01, loss + 0.012, **bootstrap),
            "expected_calibration_error": Interval(ece, ece * 0.7, ece * 1.4, **bootstrap),
            **calibration_intervals(probability, y, images.patient, resamples=RESAMPLES),
        },
        auroc_by_etiology={
            name: auroc_interval(logit[(etiologies == name) | ~y], y[(etiologies == name) | ~y])
            for name in ("bacteria", "virus")
        },
        operating_points=operating_points,
        flow=ImageFlow(
            source="Kermany <2018> & others",
            skipped=2,
            unreadable=1,
            labeled=ImageCount(len(y) + 40, len(set(images.patient)) + 30),
            other_splits={"train": ImageCount(40, 30)},
            evaluated=ImageCount(len(y), len(set(images.patient))),
        ),
        decision_curve=decision_curve(probability, y, images.patient, resamples=RESAMPLES),
        test_evaluation=1,
        seconds=21.37,
        created="2026-01-02T03:04:05Z",
        version="0.1.0",
    )


def write_run(folder: Path, evaluation: Evaluation, scored: list[ScoredImage], epochs: int, rng: Any) -> None:
    """Write the files of a run folder that the page reads."""
    test_folder = folder / "evaluation" / "test"
    test_folder.mkdir(parents=True)
    (test_folder / "evaluation.json").write_text(to_json(evaluation), encoding="utf-8")
    with (test_folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(ScoredImage)])
        writer.writerows(dataclasses.astuple(image) for image in scored)
    (folder / "recipe.toml").write_text(
        f'# {evaluation.name}\nname = "{evaluation.name}"\nseed = 0\n\n[network]\nweights = "none"\n'
        '\n[optimizer]\nname = "adam"\nlearning_rate = 0.001\n\n[training]\nepochs = 15\nbatch = 64\n',
        encoding="utf-8",
    )
    facts = {
        "schema": 1,
        "name": evaluation.name,
        "state": "finished",
        "recipe": {"name": "shown verbatim"},
        "seed": 0,
        "device": "cpu",
        "network": "alexnet",
        "optimizer": "adam",
        "batch": 64,
        "image_size": 224,
        "epochs": epochs,
        "weights": "none",
        "split_by": "image",
        "precision": "32",
        "started": "2026-01-02T03:04:05+00:00",
        "best_epoch": min(epochs, 9),
        "average_train_accuracy": 0.9,
        "average_validation_accuracy": 0.9,
        "best_validation_accuracy": 0.9,
        "manifest_sha256": "9d" * 32,
        "versions": {"pneumoscope": "0.1.0", "torch": "2.14.1", "python": "3.11.2"},
        "machine": {"processor": "2 cores", "memory": "15.6 GiB"},
        "seconds": 1860.25,
        "counts": {"train": {"NORMAL": 1140}},
        "resumed": [
            {
                "when": "2026-01-02T04:04:05+00:00",
                "epoch": 1,
                "device": "cpu",
                "precision": "32",
                "machine": {},
                "versions": {},
            }
        ],
    }
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    write_epochs(folder / "epochs.csv", epochs, rng)


def write_epochs(path: Path, epochs: int, rng: Any) -> None:
    lines = [
        "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,validation_auroc,learning_rate,seconds"
    ]
    for epoch in range(1, epochs + 1):
        train = 0.98 - 0.25 * np.exp(-epoch / 3)
        validation = 0.95 - 0.2 * np.exp(-epoch / 2) - abs(rng.normal(0, 0.025))
        loss = 0.06 + 0.5 * np.exp(-epoch / 3)
        lines.append(
            f"{epoch},{loss:.6f},{train:.6f},{loss + 0.05 + 0.012 * epoch + abs(rng.normal(0, 0.03)):.6f},"
            f"{validation:.6f},{0.98:.6f},0.001,{61.5 + epoch / 10:.2f}"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def summarize(name: str, row: tuple[Any, ...], evaluation: Evaluation, epochs: int) -> RunSummary:
    _, network, optimizer, batch, size, _ = row
    return RunSummary(
        name, network, optimizer, batch, size, epochs, 0, "cpu", "none", 0.912345, 0.887654, min(epochs, 9), 1860.25,
        {"n": evaluation.n, **evaluation.operating_points["half"].metrics, **evaluation.metrics},
        evaluation.operating_points["half"].confusion,
    )  # fmt: skip


def compare_pairs(names: list[str], scored: list[list[ScoredImage]], images: Images) -> tuple[PairedTest, ...]:
    logits = [np.array([image.logit for image in each]) for each in scored]
    correct = [(each >= 0) == images.positive for each in logits]
    tests = []
    for metric in ("accuracy", "auroc"):
        rows = []
        for a, b in itertools.combinations(range(len(names)), 2):
            if metric == "accuracy":
                p = mcnemar_exact(correct[a], correct[b])
                rows.append((a, b, paired_difference(correct[a], correct[b]), "mcnemar, exact", p))
            else:
                difference, p = delong_test(logits[a], logits[b], images.positive)
                rows.append((a, b, difference, "delong", p))
        for (a, b, difference, test, p), corrected in zip(rows, holm([row[4] for row in rows]), strict=True):
            is_significant = corrected is not None and corrected < 0.05
            verdict = ("a" if difference.value > 0 else "b") if is_significant else "not distinguishable"
            tests.append(
                PairedTest(
                    names[a],
                    names[b],
                    metric,
                    difference,
                    test,
                    p,
                    corrected,
                    verdict,
                    f"{metric} of {names[a]} and {names[b]}",
                )
            )
    return tuple(tests)


def published_rows(n: int, runs: list[RunSummary]) -> tuple[ReferenceRow, ...]:
    rows = []
    for name, *_, c in PUBLISHED:
        sensitivity, specificity = c.tp / (c.tp + c.fn), c.tn / (c.tn + c.fp)
        printed = {
            "Accuracy": (c.tp + c.tn) / 624,
            "Recall": sensitivity,
            "Precision": specificity,
            "F1": 2 * sensitivity * specificity / (sensitivity + specificity),
        }
        metrics = {
            "accuracy": wilson(c.tp + c.tn, 624),
            "sensitivity": wilson(c.tp, c.tp + c.fn),
            "specificity": wilson(c.tn, c.tn + c.fp),
            "precision": wilson(c.tp, c.tp + c.fp),
            "f1": Interval(2 * c.tp / (2 * c.tp + c.fp + c.fn), None, None, "none", 624, reason="needs the images"),
        }
        run = next((run for run in runs if run.name == name), None)
        difference = None if run is None else newcombe(run.confusion.tp + run.confusion.tn, n, c.tp + c.tn, 624)
        sentence = (
            "There is no run of this name." if run is None else f"{name}: not distinguishable from the published one."
        )
        rows.append(ReferenceRow(name, printed, c, metrics, 0.9123, 0.8765, difference, sentence))
    return tuple(rows)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ComparisonAndFolders]:
    """Return a function that writes run folders and returns their comparison and the folders."""

    def build(
        names: list[str], *, n: int = 96, normal: int | None = None, epochs: int = 4, published: bool = True
    ) -> ComparisonAndFolders:
        rng = np.random.default_rng(7)
        root = tmp_path_factory.mktemp("runs")
        images = make_images(n, n * 234 // 624 if normal is None else normal, rng)
        folders, summaries, scored = [], [], []
        for index, name in enumerate(names):
            row = PUBLISHED[index % len(PUBLISHED)]
            separation, bias = SYNTHETIC[index % len(PUBLISHED)]
            scored.append(score_images(images, separation, bias, rng))
            evaluation = evaluate(name, images, scored[-1])
            folders.append(root / f"run-{index}")
            write_run(folders[-1], evaluation, scored[-1], epochs, rng)
            summaries.append(summarize(name, row, evaluation, epochs))
        pairs = compare_pairs(names, scored, images)
        general = (
            f"Of {len(names)} runs {names[-1]} has the highest accuracy.",
            "Each run is one network from one seed.",
        )
        sentences = (general[0], *(pair.sentence for pair in pairs), general[1])
        comparison = Comparison(
            images={"sha256": IMAGES_SHA256, "n": n, "patients": len(set(images.patient)), "counts": evaluation.counts},
            operating_point="half",
            runs=tuple(summaries),
            pairs=pairs,
            sentences=sentences if len(names) > 1 else (),
            reference=ReferenceTable(
                "The report's “Precision” is specificity, and its “F1” is the harmonic mean of sensitivity and specificity.",
                published_rows(n, summaries),
            ) if published else None,
            command="pneumoscope compare runs/* --out report",
            created="2026-01-02T03:04:05Z",
            version="0.1.0",
        )  # fmt: skip
        return comparison, folders

    return build


@pytest.fixture(scope="session")
def three(
    build: Callable[..., ComparisonAndFolders], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Comparison, list[Path], Path]:
    """Return a comparison of three runs with undefined values and a name with markup, its folders and its page."""
    comparison, folders = build(["alexnet-sgd", MARKUP_NAME, "vgg19-adam-32"])
    comparison = with_undefined_values(comparison)
    return (
        comparison,
        folders,
        write_comparison_page(comparison, folders, tmp_path_factory.mktemp("page") / "report.html"),
    )


def with_undefined_values(comparison: Comparison) -> Comparison:
    """Return the comparison with an undefined precision, an F1 without interval, and pairs with every verdict."""
    run = comparison.runs[0]
    test = {
        **run.test,
        "precision": Interval(None, None, None, "wilson", 0, reason="no image is <b>predicted</b> as pneumonia"),
        "f1": Interval(
            0.25,
            None,
            None,
            "patient bootstrap",
            96,
            seed=0,
            reason="the statistic is defined in only 3 of 100 resamples",
        ),
    }
    first, second, third, *others = comparison.pairs
    pairs = (
        dataclasses.replace(first, p=None, p_holm=None, verdict="not distinguishable"),
        dataclasses.replace(second, verdict="a"),
        dataclasses.replace(third, verdict="b"),
        *others,
    )
    return dataclasses.replace(
        comparison, runs=(dataclasses.replace(run, test=test), *comparison.runs[1:]), pairs=pairs
    )
