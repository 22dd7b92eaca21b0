"""`pneumoscope accept` and `pneumoscope sample-size`, and the profile in other commands."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner
from msgspec import structs
from tests.evaluation.acceptance.test_accept import CARD_POINTS, WIDE, write_site

from pneumoscope.bundle.card import Proportion
from pneumoscope.cli import cli


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def bundle(shared_maker):
    folder = shared_maker.root / "accepted by command"
    return shared_maker.bundle(folder, gain=0.1, operating_points=CARD_POINTS, rejection_limits=WIDE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("site"), shift=30)


@pytest.fixture(scope="module")
def accepted(bundle, site, tmp_path_factory):
    out = tmp_path_factory.mktemp("accepted")
    result = invoke("accept", site, "--model", bundle, "--site-name", "North Clinic", "--margin", 0.1, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


@pytest.mark.slow
def test_prints_the_report_that_it_writes(accepted, bundle, site):
    out, result = accepted

    assert result.stdout == (out / "acceptance.md").read_text()
    assert result.stdout.startswith("# Acceptance test of gray at North Clinic\n")
    assert "**Verdict at balanced: inferior to the card (specificity).**" in result.stdout
    command = [
        "pneumoscope",
        "accept",
        site,
        "--model",
        bundle,
        "--site-name",
        "North Clinic",
        "--out",
        out,
        "--margin",
        0.1,
    ]
    assert f"`{shlex.join(map(str, command))}`" in result.stdout
    assert f"profile  {out / 'site.json'}" in result.stderr


@pytest.mark.slow
def test_json_is_one_document(bundle, site, tmp_path):
    document = json.loads(
        invoke("accept", site, "--model", bundle, "--site-name", "A", "--out", tmp_path, "--json").stdout
    )
    assert (document["verdict"], document["n"]) == ("inferior", 300)
    assert document["operating_points"]["balanced"]["tests"]["specificity"]["verdict"] == "inferior"


def test_every_output_of_predict_names_the_profile(accepted, bundle, site):
    out, _ = accepted
    image = next((site / "NORMAL").iterdir())
    options = ("predict", image, "--model", bundle, "--site", out / "site.json")

    table = invoke(*options)
    assert "Site profile: North Clinic (" in table.stdout
    assert "Site profile" not in invoke("predict", image, "--model", bundle).stdout
    assert json.loads(invoke(*options, "--json").stdout)["model"]["site"].startswith("North Clinic (")
    (row,) = csv.DictReader(io.StringIO(invoke(*options, "--csv", "-").stdout.lstrip("\ufeff")))
    assert row["model_site"].startswith("North Clinic (")


def test_profile_of_another_model_is_an_error(accepted, site, shared_maker):
    out, _ = accepted
    other = shared_maker.bundle(shared_maker.root / "other model", gain=0.2)
    image = next((site / "NORMAL").iterdir())
    result = CliRunner().invoke(cli, ["predict", str(image), "--model", str(other), "--site", str(out / "site.json")])
    assert "was made for another model" in str(result.exception)


def test_sample_size_prints_one_row_per_operating_point(bundle):
    result = invoke("sample-size", "--model", bundle, "--margin", 0.1, "--power", 0.9)
    document = json.loads(invoke("sample-size", "--model", bundle, "--margin", 0.1, "--power", 0.9, "--json").stdout)

    lines = result.stdout.splitlines()
    assert lines[0] == "gray, margin 0.1, power 90%"
    assert [line.split()[0] for line in lines[2:]] == ["half", "balanced", "rule_out", "rule_in"]
    images = document["images"]["balanced"]["sensitivity"]
    assert lines[3].split() == ["balanced", str(images), str(images)]
    assert 50 < images < 300


def test_sample_sizes_that_are_not_feasible_are_named(shared_maker):
    few = Proportion(value=0.8, low=0.38, high=0.96, n=5, method="wilson")
    point = structs.replace(CARD_POINTS["balanced"], sensitivity=few)
    bundle = shared_maker.bundle(shared_maker.root / "uncertain card", operating_points={"balanced": point})
    assert invoke("sample-size", "--model", bundle).stdout.splitlines()[2].split()[:3] == [
        "balanced",
        "not",
        "feasible",
    ]


def test_monitor_reports_drift_and_sets_the_exit_status_on_request(accepted, bundle, tmp_path):
    out, _ = accepted
    same = write_site(tmp_path / "same", normal=50, pneumonia=50, shift=30, seed=4)
    darker = write_site(tmp_path / "darker", normal=50, pneumonia=50, shift=-20, seed=4)
    options = ("--model", bundle, "--site", out / "site.json", "--exit-code")

    quiet, alarm = invoke("monitor", same, *options), invoke("monitor", darker, *options)
    assert (quiet.exit_code, quiet.stdout.split(".")[0]) == (0, "No drift detected")
    assert alarm.exit_code == 4
    assert alarm.stdout.startswith("**Drift: ")
    assert invoke("monitor", darker, *options[:-1]).exit_code == 0
    document = json.loads(invoke("monitor", darker, *options, "--json").stdout)
    assert (document["alarm"], document["n"]) == (True, 100)


@pytest.mark.slow
def test_alarm_sets_the_status_of_the_process(accepted, bundle, tmp_path):
    out, _ = accepted
    darker = write_site(tmp_path / "darker", normal=50, pneumonia=50, shift=-20, seed=4)
    command = [sys.executable, "-m", "pneumoscope", "monitor", darker, "--model", bundle, "--site", out / "site.json"]
    found = subprocess.run([*command, "--exit-code"], capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stdout[:8]) == (4, "**Drift:")


def test_site_is_named_after_the_data(bundle, tmp_path, monkeypatch):
    ward = write_site(tmp_path / "ward.3", normal=5, pneumonia=5)
    table = tmp_path / "labeled images.csv"
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in sorted(ward.rglob("*.png"))]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    monkeypatch.chdir(ward)

    for number, (data, name) in enumerate(((ward, "ward.3"), (table, "labeled images"), (".", "ward.3"))):
        out = tmp_path / f"out {number}"
        result = invoke("accept", data, "--model", bundle, "--out", out)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"# Acceptance test of gray at {name}\n")
        assert "--site-name" not in result.stdout
        assert json.loads((out / "site.json").read_text())["name"] == name


def test_invalid_site_name_is_an_error_before_images_are_scored(bundle, site, tmp_path):
    result = CliRunner().invoke(
        cli, ["accept", str(site), "--model", str(bundle), "--site-name", "x" * 65, "--out", str(tmp_path / "out")]
    )
    assert "1 to 64 printable characters" in str(result.exception)
    assert not (tmp_path / "out").exists()
