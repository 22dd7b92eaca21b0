"""Controls that hide the lungs or everything else, and the AUROC of a network on them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumoscope.core.errors import UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.shortcuts import NETWORK_CONTROLS, measure_network_shortcuts, shortcuts_markdown

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 20), dtype=np.uint8)


def test_blanked_center_has_the_mean_level_and_the_rest_stays() -> None:
    changed = NETWORK_CONTROLS["center blanked, 60% of each side"](IMAGES)
    inner = changed[:, 4:16, 4:16]
    assert [np.unique(image).tolist() for image in inner] == [[round(float(image.mean()))] for image in IMAGES]
    mask = np.ones((20, 20), bool)
    mask[4:16, 4:16] = False
    assert np.array_equal(changed[:, mask], IMAGES[:, mask])


def test_center_alone_is_black_outside() -> None:
    changed = NETWORK_CONTROLS["center only, 70% of each side"](IMAGES)
    assert np.array_equal(changed[:, 3:17, 3:17], IMAGES[:, 3:17, 3:17])
    assert changed.sum() == IMAGES[:, 3:17, 3:17].sum()


def test_averages_keep_no_details() -> None:
    changed = NETWORK_CONTROLS["8 x 8 averages"](np.tile(np.uint8([[0, 255], [255, 0]]), (1, 8, 8)))
    assert np.abs(changed.astype(int) - 127.5).max() <= 1


def test_auroc_of_each_control_equals_that_of_scikit_learn(maker: Any, tmp_path: Any) -> None:
    # The label is in the border only: pneumonias have a brighter frame.
    rows = ["path,label,patient,split"]
    levels = {}
    random = np.random.default_rng(1)
    for i in range(40):
        positive = i % 2 == 1
        image = random.integers(90, 130, (16, 16), dtype=np.uint8)
        image[[0, 1, -1, -2]] = 120 + 25 * positive + i % 5
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        levels[f"{i}.png"] = image
        rows.append(f"{i}.png,{'PNEUMONIA' if positive else 'NORMAL'},p{i // 2},validation")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    stages: list[str] = []

    result = measure_network_shortcuts(
        maker.bundle(tmp_path / "bundle"),
        tmp_path / "data.csv",
        out=tmp_path / "out",
        command="pneumoscope shortcuts BUNDLE",
        progress=lambda name, done, total: stages.append(f"{name} {done}/{total}"),
    )

    images = load_manifest(tmp_path / "data.csv").images
    labels = [image.positive for image in images]
    pixels = np.stack([levels[image.path] for image in images])

    def expected(changed: Any) -> float:
        return float(roc_auc_score(labels, changed.mean((1, 2))))  # the test network is linear in the mean gray level

    assert result.whole.value == pytest.approx(expected(pixels))
    for row in result.controls:
        auroc = expected(NETWORK_CONTROLS[row.name](pixels))
        assert row.auroc.value == pytest.approx(auroc)
        assert row.difference.value == pytest.approx(auroc - result.whole.value)
    by_name = {row.name: row for row in result.controls}
    assert by_name["center blanked, 60% of each side"].auroc.value > 0.9  # the shortcut is found
    assert by_name["center only, 70% of each side"].auroc.value < 0.75
    assert (result.n, result.patients, result.split) == (40, 20, "validation")
    assert json.loads((tmp_path / "out/shortcuts.json").read_text())["whole"]["value"] == result.whole.value
    assert (tmp_path / "out/shortcuts.md").read_text() == shortcuts_markdown(result)
    assert stages[-1] == "8 x 8 averages 40/40"


def test_test_images_are_reserved(maker: Any) -> None:
    with pytest.raises(UsageError, match="test images are reserved"):
        measure_network_shortcuts(maker.run(), maker.images(), split="test")
