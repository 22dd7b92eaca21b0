"""The simulation of false alarms: hospitals whose images do not change, and a change that is found."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tests.benchmarks.loading import load_benchmark

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.runs.run_folder import find_bundle

pytestmark = pytest.mark.slow

false_alarms = load_benchmark("false_alarms")


@pytest.fixture(scope="module")
def card():
    return read_bundle(find_bundle(None))[0]


def test_brightness_is_changed_alone_by_half_a_standard_deviation(card):
    before, after = (
        false_alarms.draw(card, np.random.default_rng(0), 4000, -0.5, brighter)
        for brighter in (0.0, false_alarms.BRIGHTER)
    )
    difference = after.statistics["brightness"] - before.statistics["brightness"]
    assert np.allclose(difference, false_alarms.BRIGHTER)
    assert 0.45 < false_alarms.BRIGHTER / before.statistics["brightness"].std() < 0.55
    for name in ("contrast", "sharpness", "border"):
        assert np.array_equal(before.statistics[name], after.statistics[name])
    assert np.array_equal(before.outputs.logits, after.outputs.logits)


def test_one_hospital_keeps_the_limits_and_one_widens_a_limit(card):
    limits = {}
    for name, distance in false_alarms.HOSPITALS.items():
        site = false_alarms.draw(card, np.random.default_rng(1), 400, distance)
        limits[name] = false_alarms.make_profile(card, site).limits
    assert limits["limits of the card"] == {}
    assert list(limits["widened limit"]) == ["ood_detector"]


def test_report_states_the_alarms_with_intervals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["false_alarms.py"])
    monkeypatch.setattr(false_alarms, "BRIGHTER", 40.0)

    false_alarms.main(["--repeats", "2", "--images", "320", "--out", str(tmp_path)])

    report = (tmp_path / "false_alarms.md").read_text()
    document = json.loads((tmp_path / "false_alarms.json").read_text())
    assert capsys.readouterr().out == report
    assert (document["allowed"], document["checks"], document["seed"]) == (0.05, 12, 0)
    assert list(document["hospitals"]) == ["limits of the card", "widened limit"]
    for name, counts in document["hospitals"].items():
        assert (counts["repeats"], counts["changed"]) == (2, 2)
        assert f"| {name} | 2 | {counts['widened']} | " in report
    assert report.count("| 100.0% [34.2%, 100.0%] |") == 2
    assert "`python benchmarks/false_alarms.py --repeats 2 --images 320 --out" in report
