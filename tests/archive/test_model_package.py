"""A model that was sent to another machine predicts as the one that was loaded here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.archive.archives import draw_images, run_cli, score, table
from tests.conftest import operating_point
from tests.images import png

from pneumoscope import load_model
from pneumoscope.archive.model_package import pack_model
from pneumoscope.archive.report import write_report
from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Calibration, Proportion
from pneumoscope.bundle.site_profile import SiteProfile


@pytest.fixture
def profile(bundle: Path, tmp_path: Path) -> Path:
    card, _ = read_bundle(bundle)
    made = SiteProfile(
        format=1, version="0.1.0", created="2026-01-02T03:04:05+00:00", name="North Clinic", model=card.name,
        onnx_sha256=card.onnx_sha256, card_sha256=card.sha256(), images_sha256="a" * 64, seen=[], n=300, patients=200,
        n_pneumonia=150, seed=0, prevalence=0.25, prevalence_source="stated",
        calibration=Calibration(slope=0.5, intercept=-1, method="platt", n=300, prevalence=0.25), intervals=None,
        operating_points={"balanced": operating_point(0.6, "youden")}, limits={},
        rejected=Proportion(value=0.01, low=0, high=0.02, n=300, method="wilson"), reference_distribution=None,
        not_changed={},
    )  # fmt: skip
    path = tmp_path / "site.json"
    path.write_text(made.to_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"operating_point": "rule_out", "require_age": "always"},
        {"prevalence": 0.1, "assume": ("chest",)},
        {"site": 1},
    ],
)
def test_a_packed_model_is_the_same_after_its_files_are_gone(
    bundle: Path, profile: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "site" in options:
        options = {"site": profile}
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    expected = load_model(copy, **options)
    sent = pickle.dumps(pack_model({"bundle": copy, **options}))
    for path in (*copy.iterdir(), profile):
        path.unlink()

    loaded = pickle.loads(sent).load()

    assert loaded.settings == expected.settings
    assert loaded.predict(png(140), name="a") == expected.predict(png(140), name="a")
    loaded.close()


def test_a_site_profile_changes_the_table_and_its_set(tmp_path: Path, bundle: Path, profile: Path) -> None:
    source = draw_images(tmp_path / "images", 4)
    plain = score(source, tmp_path / "plain", bundle)
    site = score(source, tmp_path / "site", bundle, model={"site": profile})
    assert plain.key != site.key
    rows = table(tmp_path / "site")
    assert {row["model_site"] for row in rows} == {load_model(bundle, site=profile).facts.site}
    accepted = [row for row in rows if row["probability"] is not None]
    assert accepted
    assert all(row["image_brightness"] is None for row in accepted)  # the profile has no reference for monitoring
    assert [row["probability"] for row in table(tmp_path / "plain")] != [row["probability"] for row in rows]


@pytest.mark.slow
def test_a_stated_prevalence_is_in_the_table_the_status_the_comparison_and_the_report(
    tmp_path: Path, bundle: Path
) -> None:
    source, out = draw_images(tmp_path / "images", 4), tmp_path / "out"
    plain = score(source, out, bundle)
    stated = score(source, out, bundle, model={"prevalence": 0.2})
    assert plain.key != stated.key
    assert {(row["model_site"], row["model_prevalence"]) for row in table(out)} == {("", None), ("", 0.2)}

    sets = {each["key"]: each for each in json.loads(run_cli("status", out, "--json").stdout)["sets"]}
    assert [(sets[key]["site"], sets[key]["prevalence"]) for key in (plain.key, stated.key)] == [("", None), ("", 0.2)]
    assert f"{stated.key} (gray, Prevalence: 20%, balanced)" in run_cli("status", out).stdout
    lines = run_cli("compare", out, plain.key, stated.key).stdout.splitlines()
    assert lines[:2] == [f"A: {plain.key}, gray, balanced", f"B: {stated.key}, gray, Prevalence: 20%, balanced"]
    report = write_report(out, tmp_path / "report.html", stated.key).read_text()
    assert "<p>Model gray, Prevalence: 20%, operating point balanced;" in report
