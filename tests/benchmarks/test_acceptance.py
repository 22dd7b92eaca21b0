"""The simulation of hospitals: what is changed, and that it is found."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tests.benchmarks.loading import load_benchmark
from tests.conftest import LIMITS

pytestmark = pytest.mark.slow

acceptance = load_benchmark("acceptance")


def test_changes_of_pixels():
    pixels = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (25, 1))
    assert np.array_equal(acceptance.gamma(pixels, 1.0), pixels)
    assert acceptance.gamma(pixels, 0.5)[0, 10] == round(255 * (100 / 255) ** 0.5)
    framed = acceptance.reframe(np.full((100, 50), 200, np.uint8), 0.5)
    assert framed.shape == (100, 50)
    assert (framed[25:75, 12:37] == 200).all()
    assert framed.sum() == 200 * 50 * 25


def test_report_states_what_was_changed_and_found(maker, tmp_path, monkeypatch, capsys):
    run = maker.run(rejection_limits=LIMITS, gain=0.1)
    images = maker.images(split="train", normal=120, pneumonia=120)
    (run / "manifest.csv").write_text(maker.manifest(images, "validation", share=1))
    monkeypatch.setattr(sys, "argv", ["acceptance.py"])

    acceptance.main([str(run), "--data", str(images), "--out", str(tmp_path / "out")])

    report = (tmp_path / "out" / "acceptance.md").read_text()
    assert capsys.readouterr().out == report
    found = {
        row["hospital"]: row for row in json.loads((tmp_path / "out" / "acceptance.json").read_text())["hospitals"]
    }
    assert list(found) == ["unchanged", "contrast", "framing", "prevalence", "all"]
    assert found["unchanged"]["drift"] == "none"
    assert "brightness" in found["contrast"]["drift"]
    assert "border" in found["framing"]["drift"]
    assert found["prevalence"]["n"] < 200
    assert f"{run} --data {images}" in report
