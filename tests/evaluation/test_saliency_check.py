"""Checks of the heatmaps of a bundle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pneumoscope.core.errors import UsageError
from pneumoscope.evaluation.saliency_check import _finite_mean, check_saliency, saliency_markdown


def test_constant_heatmaps_are_left_out_of_the_mean() -> None:
    assert _finite_mean([[0.2, np.nan], [0.4, np.nan]])[0] == pytest.approx(0.3)
    assert np.isnan(_finite_mean([[0.2, np.nan], [0.4, np.nan]])[1])


def test_test_images_are_rejected(maker: Any) -> None:
    with pytest.raises(UsageError, match="test images are reserved"):
        check_saliency(maker.run(), maker.images(), split="test")


@pytest.mark.slow
def test_default_model_on_phantoms(tmp_path: Any) -> None:
    """The bundle in the package, on 4 phantoms: files, records and Markdown agree; the same seed gives the same numbers."""
    from pneumoscope.data.layouts import load_manifest
    from pneumoscope.data.split import split_manifest
    from pneumoscope.imaging.phantom import write_phantoms
    from pneumoscope.runs.run_folder import find_bundle

    write_phantoms(tmp_path / "images", train=20, test=4, size=64)
    manifest = split_manifest(load_manifest(tmp_path / "images"), by="patient", validation=0.4, test=None, seed=0)
    manifest.save(tmp_path / "manifest.csv")
    stages: list[str] = []

    result = check_saliency(
        find_bundle(),
        tmp_path / "manifest.csv",
        images=4,
        out=tmp_path / "out",
        command="pneumoscope saliency-check BUNDLE",
        progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"),
    )

    document = json.loads((tmp_path / "out" / "saliency_check.json").read_text())
    assert document["heatmap_shape"] == list(result.heatmap_shape) == [4, 4]
    assert document["n"] == 4
    assert document["deletion"]["heatmap"]["value"] == result.deletion.heatmap.value
    assert [row["layers"] for row in document["randomization"]] == [1, 25, 50, 0]
    assert (tmp_path / "out" / "saliency_check.md").read_text() == saliency_markdown(result)
    assert "`pneumoscope saliency-check BUNDLE`" in saliency_markdown(result)
    assert stages[3] == "deletion and insertion 4/4"
    assert stages[-1] == "weight randomization, all layers 3/3"
