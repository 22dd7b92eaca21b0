"""The study trains each attempt on each split, looks at validation images alone, and goes on where it stopped."""

import csv
import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import RecipeError
from pneumoscope.imaging.phantom import phantom

pytestmark = pytest.mark.training

_PATH = Path(__file__).parents[2] / "benchmarks" / "study.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_study", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = benchmark
_SPEC.loader.exec_module(benchmark)

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
why = "where we start"
set = []
[attempts.turned]
why = "images lie askew"
set = ["augmentation.rotation=10", "training.batch=8"]
"""


@pytest.fixture
def attempts(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    (tmp_path / "base.toml").write_text(RECIPE)
    (tmp_path / "attempts.toml").write_text(ATTEMPTS)
    return tmp_path / "attempts.toml"


def test_an_attempt_changes_the_base_and_is_split_as_asked(attempts):
    plain, turned = benchmark.read_attempts(attempts)
    made = turned.made("block", 3)
    assert (made.name, made.data.by, made.training.seed) == ("turned-block-3", "block", 3)
    assert (made.augmentation.rotation, made.training.batch) == (10, 8)
    assert plain.made("patient", 0).augmentation.rotation == 0


@pytest.mark.parametrize(
    "text", ["recipe = 3", "[attempts.x]\nset = []", 'recipe = "quick"\n[attempts.x]\nset = []', "["]
)
def test_a_file_of_no_attempts_is_refused(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(RecipeError, match="holds no attempts"):
        benchmark.read_attempts(tmp_path / "a.toml")


def test_the_study_as_a_whole(attempts, tmp_path, capsys):
    images = tmp_path / "images"
    phantom(images, train=60, test=20, size=48)
    options = [str(attempts), "--data", str(images), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]

    benchmark.main([*options, "--only", "plain"])
    first = (tmp_path / "runs/plain-block-0/bundle/network.onnx").stat().st_mtime_ns
    benchmark.main([*options, "--by", "block", "--seeds", "0", "1"])

    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/validation.csv").read_text())))
    assert [(row["attempt"], row["by"], row["seed"]) for row in rows] == [
        ("plain", "block", "0"),
        ("plain", "block", "1"),
        ("plain", "patient", "0"),
        ("turned", "block", "0"),
        ("turned", "block", "1"),
    ]
    assert (tmp_path / "runs/plain-block-0/bundle/network.onnx").stat().st_mtime_ns == first
    judged = json.loads((tmp_path / "runs/turned-block-1/evaluation/validation/evaluation.json").read_text())
    assert float(rows[4]["auroc"]) == judged["metrics"]["auroc"]["value"]
    assert float(rows[4]["specificity"]) == judged["operating_points"]["half"]["metrics"]["specificity"]["value"]
    text = (tmp_path / "out/validation.md").read_text()
    mean = (float(rows[0]["auroc"]) + float(rows[1]["auroc"])) / 2
    assert f"| plain | where we start | block | 2 | {mean:.4f} |" in text
    assert text in capsys.readouterr().out
    assert not (tmp_path / "ledger.jsonl").exists()  # no look at test images
    assert json.loads((tmp_path / "out/validation.json").read_text())[0]["why"] == "where we start"


def test_a_image_is_framed_as_those_of_the_other_label_are():
    image = np.arange(200, dtype=np.uint8).reshape(10, 20)
    np.testing.assert_array_equal(benchmark.frame(image, positive=True), image[:, 2:18])
    np.testing.assert_array_equal(benchmark.frame(image, positive=False), image[1:9])


def test_what_is_said_of_shifted_images_by_hand(attempts, tmp_path, monkeypatch):
    """A network that calls an image by its mean grey: black corners of turned images make it darker, and so another call."""
    images = tmp_path / "images"
    phantom(images, train=60, test=20, size=48)
    run = tmp_path / "run"
    benchmark.train(benchmark.read_attempts(attempts)[0].made("block", 0), images, run)
    labels = [image.positive for image in benchmark.select_images(images, "validation", run / "manifest.csv")[1]]

    class ByGrey:
        card = benchmark.BundleSession.load(run / "bundle").card

        def stream(self, made):
            for image in made:
                logit = float(image.pixels.mean()) - level
                yield types.SimpleNamespace(logit=logit)

    greys = [
        benchmark.decode(images / image.path).pixels
        for image in benchmark.select_images(images, "validation", run / "manifest.csv")[1]
    ]
    level = float(np.median([grey.mean() for grey in greys]))
    threshold = ByGrey.card.operating_points["balanced"].threshold
    monkeypatch.setattr(benchmark.BundleSession, "load", lambda folder: ByGrey())

    found = benchmark.shifted(run, images)

    def call(grey):
        return 1 / (1 + np.exp(level - grey.mean())) >= threshold

    framed = [benchmark.frame(grey, label).mean() > level for grey, label in zip(greys, labels, strict=True)]
    assert found["accuracy_framed"] == np.mean(np.array(framed) == labels)
    turned = [Image.fromarray(grey).rotate(d, Image.Resampling.BILINEAR) for d in (10, -10) for grey in greys]
    expected = np.mean([call(np.asarray(new)) != call(old) for new, old in zip(turned, [*greys, *greys], strict=True)])
    assert found["changed_turned"] == pytest.approx(expected)
    assert expected > 0


def test_an_unknown_attempt_is_named(attempts, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([str(attempts), "--data", "d", "--runs", "r", "--out", "o", "--only", "other"])
    assert "there is no attempt other" in capsys.readouterr().err
