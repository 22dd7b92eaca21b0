"""The study of the age classifier: sources that are left out, controls, and resumption."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.benchmarks.loading import load_benchmark

from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.imaging.phantom import draw_phantom

pytestmark = pytest.mark.training

outliers = load_benchmark("outliers")


class MeanLevel(torch.nn.Module):
    """Stands for a trained network: the logit grows with the mean gray level."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float().mean((1, 2)) - 127) / 10


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    write_phantoms(tmp_path / "images", train=24, test=4, seed=1, size=48)
    rows = ["path,age,source,split"]
    for i in range(20):
        source = "bright" if i % 2 else "dark"
        level = 255 if source == "bright" else 0
        image = (draw_phantom(500 + i, False, size=48).astype(int) + 3 * level) // 4
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,40,{source},{'train' if i < 12 else 'validation'}")
    (tmp_path / "adults.csv").write_text("\n".join(rows))
    return tmp_path


def run(folders: Path, monkeypatch: pytest.MonkeyPatch, *variants: str) -> list[dict[str, object]]:
    arguments = [
        "outliers.py", "--data", str(folders / "images"), "--outliers", str(folders / "adults.csv"),
        "--inside", str(folders / "images/test/NORMAL"), "--out", str(folders / "out"), "--variants", *variants,
        "--set", "data.by=patient", "--set", "rejection.age_steps=3", "--set", "rejection.age_share=0.1",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    outliers.main()
    rows: list[dict[str, object]] = json.loads((folders / "out/outliers.json").read_text())["rows"]
    return rows


def test_left_out_sources_are_measured_and_a_study_is_resumed(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(inside, outside, groups, *, steps, seed, view):  # type: ignore[no-untyped-def]
        trained.append((len(inside), sorted(groups), steps, view))
        return MeanLevel()

    monkeypatch.setattr(outliers, "train_age_classifier", train)
    rows = run(folders, monkeypatch, "all", "dark")

    assert [groups for _, groups, _, _ in trained] == [["bright"] * 6 + ["dark"] * 6, ["dark"] * 10]
    assert all(steps == 3 and view is None for _, _, steps, view in trained)
    by_name = {(row["variant"], row["images"]): row for row in rows}
    assert ("dark", "dark") not in by_name  # trained on, hence not measured
    assert by_name["dark", "bright"]["passed"]["n"] == 10  # type: ignore[index]
    assert by_name["all", "bright"]["passed"]["n"] == 4  # type: ignore[index]
    # The stand-in rejects bright images and passes dark ones.
    assert by_name["all", "bright"]["passed"]["value"] == 0  # type: ignore[index]
    assert by_name["all", "dark"]["passed"]["value"] == 1  # type: ignore[index]
    assert by_name["all", "bright"]["auroc"]["value"] == 1  # type: ignore[index]
    assert by_name["all", "test/NORMAL"]["inside"] is True

    again = run(folders, monkeypatch, "all", "dark", "border")
    assert len(trained) == 3
    assert again[: len(rows)] == rows
    text = (folders / "out/outliers.md").read_text()
    assert "| border | dark | no | 4 |" in text


@pytest.mark.parametrize("name", list(outliers.CONTROLS))
def test_controls_hide_what_they_say(name: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 40), dtype=np.uint8))
    seen = outliers.CONTROLS[name](images)
    assert seen.shape == images.shape
    center, edge = slice(6, 34), slice(0, 6)
    if name == "border":
        assert not seen[:, center, center].any()
        assert torch.equal(seen[:, edge], images[:, edge].float())
    elif name == "center":
        assert not seen[:, edge].any()
        assert torch.equal(seen[:, center, center], images[:, center, center].float())
    elif name == "histogram":
        assert torch.equal(seen.flatten(1), images.float().flatten(1).sort(1).values)
    else:
        assert seen.std() < images.float().std() / 3  # averages of 25 pixels
