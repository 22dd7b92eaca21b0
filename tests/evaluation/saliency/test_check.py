"""Checks of the heatmaps of a bundle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.evaluation.saliency.check import check_saliency, finite_mean, saliency_markdown
from pneumoscope.evaluation.saliency.localization import read_mask
from pneumoscope.evaluation.saliency.metrics import localize


def test_constant_heatmaps_are_left_out_of_the_mean() -> None:
    assert finite_mean([[0.2, np.nan], [0.4, np.nan]])[0] == pytest.approx(0.3)
    assert np.isnan(finite_mean([[0.2, np.nan], [0.4, np.nan]])[1])


def test_test_images_are_rejected(maker: Any) -> None:
    with pytest.raises(UsageError, match="test images are reserved"):
        check_saliency(maker.run(), maker.images(), split="test")


def test_localization_by_hand() -> None:
    heatmap = np.array([[4.0, -8.0], [1.0, 3.0]])  # an image of the size of the heatmap is not resized
    upper_left = np.array([[True, False], [False, False]])

    assert localize(heatmap, upper_left, "squash") == (True, pytest.approx(4 / 8))
    assert localize(heatmap, ~upper_left, "squash") == (False, pytest.approx(4 / 8))
    assert localize(-heatmap, upper_left, "squash") == (False, 0)
    assert localize(np.full((2, 2), -1.0), ~upper_left, "squash") == (False, 0)  # no contribution towards pneumonia


def test_localization_follows_the_crop() -> None:
    heatmap = np.zeros((4, 4))
    heatmap[:, 0] = 1
    left, center = np.zeros((2, 40, 80), bool)
    left[:, :20] = True
    center[:, 20:30] = True

    assert localize(heatmap, left, "squash")[1] > 0.85
    assert localize(heatmap, left, "center") == (False, 0)  # the network sees columns 20 to 59 only
    assert localize(heatmap, center, "center")[1] > 0.85


@pytest.mark.slow
def test_default_model_on_phantoms(tmp_path: Any) -> None:
    """The bundle in the package, on 2 phantoms: files, records and Markdown agree."""
    from pneumoscope.data.layouts import load_manifest
    from pneumoscope.data.phantoms import write_phantoms
    from pneumoscope.data.split import split_manifest
    from pneumoscope.runs.run_folder import find_bundle

    write_phantoms(tmp_path / "images", train=20, test=4, size=64, masks=tmp_path / "masks")
    manifest = split_manifest(load_manifest(tmp_path / "images"), by="patient", validation=0.4, test=None, seed=0)
    manifest.save(tmp_path / "images" / "manifest.csv")
    stages: list[str] = []

    result = check_saliency(
        find_bundle(),
        tmp_path / "images" / "manifest.csv",
        images=2,
        masks=tmp_path / "masks",
        out=tmp_path / "out",
        command="pneumoscope saliency-check BUNDLE",
        progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"),
    )

    document = json.loads((tmp_path / "out" / "saliency_check.json").read_text())
    assert document["heatmap_shape"] == list(result.heatmap_shape) == [14, 14]
    assert document["n"] == 2
    assert document["deletion"]["heatmap"]["value"] == result.deletion.heatmap.value
    assert [row["layers"] for row in document["randomization"]] == [1, 25, 50, 0]
    assert (tmp_path / "out" / "saliency_check.md").read_text() == saliency_markdown(result)
    assert "`pneumoscope saliency-check BUNDLE`" in saliency_markdown(result)
    assert "near 0 is expected after randomization. Correlations of magnitudes" in saliency_markdown(result)
    pneumonia = [image for image in manifest.split("validation") if image.positive]
    areas = [
        np.mean(np.asarray(Image.open((tmp_path / "masks" / image.path).with_suffix(".png"))) > 0)
        for image in pneumonia
    ]
    assert result.localization is not None
    assert result.localization.n == len(pneumonia)
    assert result.localization.area.value == pytest.approx(np.mean(areas))
    assert document["localization"]["peak_inside"]["value"] == result.localization.peak_inside.value
    assert "peak inside the mask" in saliency_markdown(result)
    n = len(pneumonia)
    assert stages[n - 1 : n + 2 : 2] == [f"localization {n}/{n}", "deletion and insertion 2/2"]
    assert stages[-1] == "weight randomization, all layers 3/3"
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="has no mask of a validation image with pneumonia"):
        check_saliency(find_bundle(), tmp_path / "images" / "manifest.csv", masks=tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "error"), [("empty", "is empty"), ("size", "has 8 x 8 pixels"), ("text", "cannot read the mask")]
)
def test_unusable_masks(tmp_path: Any, content: str, error: str) -> None:
    path = tmp_path / "mask.png"
    if content == "text":
        path.write_text("not an image")
    else:
        Image.new("L", (8, 8) if content == "size" else (16, 16)).save(path)

    with pytest.raises(DatasetError, match=error):
        read_mask(path, (16, 16))
