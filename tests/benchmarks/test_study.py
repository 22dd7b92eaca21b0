"""The study: attempts are trained on each split, evaluated on validation images only, and resumed after an interruption."""

from __future__ import annotations

import csv
import io
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.benchmarks.loading import load_benchmark

from pneumoscope.core.errors import RecipeError
from pneumoscope.data.phantoms import write_phantoms

pytestmark = pytest.mark.training

benchmark = load_benchmark("study")

RECIPE = """
name = "base"
[network]
name = "test_efficientnet"
image_size = 32
[training]
epochs = 1
batch = 16
"""
ATTEMPTS = """
recipe = "base.toml"
[attempts.plain]
why = "baseline"
set = []
[attempts.rotated]
why = "patients are not always upright"
set = ["augmentation.rotation=10", "training.batch=8"]
"""


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    (tmp_path / "base.toml").write_text(RECIPE)
    (tmp_path / "attempts.toml").write_text(ATTEMPTS)
    return tmp_path / "attempts.toml"


def test_attempt_changes_the_base_recipe_and_the_split(attempts: Path) -> None:
    plain, rotated = benchmark.read_attempts(attempts)
    recipe = rotated.run_recipe("block", 3)
    assert (recipe.name, recipe.data.by, recipe.training.seed) == ("rotated-block-3", "block", 3)
    assert (recipe.augmentation.rotation, recipe.training.batch) == (10, 8)
    assert plain.run_recipe("patient", 0).augmentation.rotation == 0


@pytest.mark.parametrize(
    "text", ["recipe = 3", "[attempts.x]\nset = []", 'recipe = "quick"\n[attempts.x]\nset = []', "["]
)
def test_malformed_files_are_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(RecipeError, match="cannot read attempts"):
        benchmark.read_attempts(tmp_path / "a.toml")


def test_study_is_resumed_and_uses_validation_images_only(
    attempts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    write_phantoms(images, train=60, test=20, size=48)
    options = [str(attempts), "--data", str(images), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]

    benchmark.main([*options, "--only", "plain"])
    first = (tmp_path / "runs/plain-block-0/bundle/network.onnx").stat().st_mtime_ns
    benchmark.main([*options, "--split-by", "block", "--seeds", "0", "1"])

    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/validation.csv").read_text())))
    assert [(row["attempt"], row["split_by"], row["seed"]) for row in rows] == [
        ("plain", "block", "0"),
        ("plain", "block", "1"),
        ("plain", "patient", "0"),
        ("rotated", "block", "0"),
        ("rotated", "block", "1"),
    ]
    assert (tmp_path / "runs/plain-block-0/bundle/network.onnx").stat().st_mtime_ns == first
    evaluation = json.loads((tmp_path / "runs/rotated-block-1/evaluation/validation/evaluation.json").read_text())
    assert float(rows[4]["auroc"]) == evaluation["metrics"]["auroc"]["value"]
    specificity = evaluation["operating_points"]["half"]["metrics"]["specificity"]["value"]
    assert float(rows[4]["specificity"]) == specificity
    text = (tmp_path / "out/validation.md").read_text()
    mean = (float(rows[0]["auroc"]) + float(rows[1]["auroc"])) / 2
    assert f"| plain | baseline | block | 2 | {mean:.4f} |" in text
    assert text in capsys.readouterr().out
    assert not (tmp_path / "ledger.jsonl").exists()  # no test-set evaluation
    assert json.loads((tmp_path / "out/validation.json").read_text())[0]["why"] == "baseline"


def test_images_are_cropped_like_the_other_label() -> None:
    image = np.arange(200, dtype=np.uint8).reshape(10, 20)
    np.testing.assert_array_equal(benchmark.crop_like_other_label(image, positive=True), image[:, 2:18])
    np.testing.assert_array_equal(benchmark.crop_like_other_label(image, positive=False), image[1:9])


def test_metrics_of_shifted_images(attempts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network predicts from the mean gray level, which the black corners of rotated images lower."""
    images = tmp_path / "images"
    write_phantoms(images, train=60, test=20, size=48)
    run = tmp_path / "run"
    benchmark.train_run(benchmark.read_attempts(attempts)[0].run_recipe("block", 0), images, run)
    validation = benchmark.select_images(images, "validation", run / "manifest.csv")[1]
    labels = [image.positive for image in validation]
    grays = [benchmark.decode(images / image.path).pixels for image in validation]
    level = float(np.median([gray.mean() for gray in grays]))

    class MeanGraySession:
        card = benchmark.BundleSession.load(run / "bundle").card

        def stream(self, radiographs: Any) -> Iterator[types.SimpleNamespace]:
            for radiograph in radiographs:
                yield types.SimpleNamespace(logit=float(radiograph.pixels.mean()) - level)

    threshold = MeanGraySession.card.operating_points["balanced"].threshold
    monkeypatch.setattr(benchmark.BundleSession, "load", lambda folder: MeanGraySession())

    metrics = benchmark.evaluate_shifted(run, images)

    def is_positive(gray: Any) -> bool:
        return bool(1 / (1 + np.exp(level - gray.mean())) >= threshold)

    pairs = zip(grays, labels, strict=True)
    cropped = [benchmark.crop_like_other_label(gray, label).mean() > level for gray, label in pairs]
    assert metrics["accuracy_cropped"] == np.mean(np.array(cropped) == labels)
    rotated = [
        np.asarray(Image.fromarray(gray).rotate(degrees, Image.Resampling.BILINEAR))
        for degrees in (10, -10)
        for gray in grays
    ]
    changed = [is_positive(new) != is_positive(old) for new, old in zip(rotated, [*grays, *grays], strict=True)]
    assert metrics["changed_by_rotation"] == pytest.approx(np.mean(changed))
    assert any(changed)


def test_unknown_attempts_are_named(attempts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main([str(attempts), "--data", "d", "--runs", "r", "--out", "o", "--only", "other"])
    assert "unknown attempts: other" in capsys.readouterr().err
