"""Robustness, on a network that uses the mean gray level, so that the results can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import LIMITS, SIZE, halves

from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.evaluation import robustness as module
from pneumoscope.evaluation.image_variants import CHANGES, CORRUPTIONS, FORMATS
from pneumoscope.evaluation.robustness import (
    compare_predictions,
    count_rejections,
    measure_robustness,
    robustness_markdown,
)
from pneumoscope.inference.model import load_model


def test_changed_decisions_and_probabilities_are_counted(maker: Any) -> None:
    """Gray 120 scores 0.44, above the threshold 0.4; at 96 it scores 0.19: the decision changes. 200 and 20 keep theirs."""
    model = load_model(maker.bundle(maker.root / "bundle"))
    images = [halves(120), halves(200), halves(20)]
    before = list(model.predict_many(images))
    after = list(model.predict_many(CHANGES["20% darker"](image) for image in images))

    result = compare_predictions("darker", before, after, ["a", "b", "c"])

    assert (result.changed.value, result.changed.n) == (1 / 3, 3)
    probability = [1 / (1 + np.exp(-(0.8 * 0.05 * (level - 125) + 0.1))) for level in (120, 96)]
    assert result.largest == pytest.approx(probability[0] - probability[1], abs=1e-3)
    assert result.near is not None
    assert result.near.value == 1 / 3  # gray 200 changes by 0.17, gray 20 by 0.003


def test_rejected_and_unreadable_images_are_counted_with_their_codes(maker: Any) -> None:
    model = load_model(maker.bundle(maker.root / "bundle"))
    before = list(model.predict_many([halves(120), halves(200), halves(20)]))
    after = list(model.predict_many([np.zeros((SIZE, SIZE), np.uint8), b"", halves(200)]))

    assert compare_predictions("blank", before, after, ["a", "b", "c"]).changed.value == 1

    result = count_rejections("blank", after)
    assert (result.rejected.value, result.predicted_pneumonia) == (2 / 3, 1)
    assert result.reasons == {"blank": 1, "unreadable_image": 1}


@pytest.fixture
def run(maker: Any) -> Path:
    """A run with limits for rejection, whose manifest puts all images into validation."""
    folder: Path = maker.run(rejection_limits=LIMITS)
    images = maker.images(split="train")
    for path in images.rglob("*.png"):  # levels above 127: the depth of darker images of 16 bits cannot be measured
        pixels = np.array(Image.open(path))
        pixels[0] = np.linspace(0, 255, SIZE)
        Image.fromarray(pixels).save(path)
    (folder / "manifest.csv").write_text(maker.manifest(images, "validation"))
    return folder


@pytest.mark.slow
def test_result_is_returned_and_written(maker: Any, run: Path) -> None:
    images, full_size, out = maker.root / "images", maker.root / "large", maker.root / "out"
    for path in sorted(images.rglob("*.png"))[:6]:
        (full_size / path.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((64, 64), Image.Resampling.NEAREST).save(full_size / path.relative_to(images))
    stages: set[str] = set()

    result = measure_robustness(
        run,
        images,
        images=12,
        phantoms=4,
        originals=full_size,
        copies=images,
        other_images=[images],
        out=out,
        command="pneumoscope robustness RUN",
        progress=lambda stage, done, total: stages.add(stage),
    )

    assert (result.n, result.split) == (12, "validation")
    assert [row.name for row in result.formats] == list(FORMATS)
    assert [row.largest for row in result.formats] == [0, 0, 0, 0]
    assert result.sizes is not None
    assert (result.sizes.changed.n, result.sizes.changed.value) == (6, 0)
    rejected = {row.name: row.rejected.value for row in result.corruptions}
    assert rejected["blank"] == 1
    # These do not change the mean gray level.
    assert rejected["upside down"] == rejected["mirrored"] == result.unmodified.rejected.value
    assert [(row.name, row.rejected.n) for row in result.other_images] == [("phantoms", 4), ("images", 32)]
    assert {"unmodified", "phantoms", "images", "full size", "downsampled", *FORMATS, *CHANGES, *CORRUPTIONS} == stages
    document = json.loads((out / "robustness.json").read_text())
    assert document["changes"][0]["changed"]["value"] == result.changes[0].changed.value
    assert (out / "robustness.md").read_text() == robustness_markdown(result)
    assert "`pneumoscope robustness RUN`" in robustness_markdown(result)


@pytest.mark.slow
def test_same_seed_gives_the_same_sample(maker: Any, run: Path) -> None:
    first, again, other = (
        measure_robustness(run, maker.root / "images", images=6, phantoms=1, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.changes != other.changes


def test_missing_copies_are_reported_before_images_are_scored(
    maker: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    images = maker.root / "images"

    with pytest.raises(DatasetError, match="lacks a copy of 32 of 32 full-size images"):
        measure_robustness(run, images, originals=images, copies=maker.root / "elsewhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "test images are reserved"),
        ({"originals": Path("large")}, "--originals and --copies must be given together"),
    ],
)
def test_invalid_options_are_rejected(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure_robustness(run, Path("images"), **options)
