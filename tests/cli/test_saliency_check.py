"""`pneumoscope saliency-check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pneumoscope.cli.saliency_check import command
from pneumoscope.core.errors import UsageError
from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.saliency import check as module
from pneumoscope.evaluation.saliency.check import CurveResult, RandomizationResult, SaliencyCheck
from pneumoscope.evaluation.saliency.localization import Localization

INTERVAL = Interval(0.5, 0.4, 0.6, "patient bootstrap", 4, seed=0)
CURVE = CurveResult(INTERVAL, INTERVAL, INTERVAL, 0.75)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the measurement, which takes seconds, and return the options that it is called with."""
    received: dict[str, Any] = {}

    def check_saliency(target: Path, data: Path, **options: Any) -> SaliencyCheck:
        received.update(options, target=target, data=data)
        return SaliencyCheck(
            bundle="gray",
            network="mean-gray",
            onnx_sha256="0" * 64,
            heatmap_shape=(4, 4),
            split=options["split"],
            n=4,
            patients=4,
            seed=options["seed"],
            steps=16,
            deletion=CURVE,
            insertion=CURVE,
            randomization=(RandomizationResult("last layer", 1, INTERVAL, INTERVAL),),
            localization=Localization(str(options["masks"]), 3, 3, INTERVAL, INTERVAL, INTERVAL)
            if options["masks"]
            else None,
            version="0.1.0",
            system="Linux",
            command=options["command"],
        )

    monkeypatch.setattr(module, "check_saliency", check_saliency)
    return received


def test_options_reach_the_library(options: dict[str, Any]) -> None:
    arguments = ["run", "--data", "images", "--split", "train", "--images", "6", "--seed", "5", "--out", "out"]
    result = CliRunner().invoke(command, arguments)

    assert result.exit_code == 0, result.output
    assert (options["target"], options["data"], options["out"]) == (Path("run"), Path("images"), Path("out"))
    assert (options["split"], options["images"], options["seed"]) == ("train", 6, 5)
    assert options["command"] == f"pneumoscope saliency-check {' '.join(arguments)}"


def test_prints_markdown_tables(options: dict[str, Any]) -> None:
    result = CliRunner().invoke(command, ["run", "--data", "images"])

    assert "| deletion, lower is better | 0.500 [0.400, 0.600] |" in result.stdout
    assert "| last layer | 1 | 0.500 [0.400, 0.600] |" in result.stdout
    assert result.stderr == ""


def test_masks_add_the_localization(options: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["run", "--data", "images", "--masks", str(tmp_path)]
    result = CliRunner().invoke(command, arguments)

    assert options["masks"] == tmp_path
    assert "| peak inside the mask | 0.500 [0.400, 0.600] |" in result.stdout
    assert options["command"] == f"pneumoscope saliency-check {' '.join(arguments)}"
    missing = CliRunner().invoke(command, ["run", "--data", "images", "--masks", str(tmp_path / "none")])
    assert missing.exit_code == 2
    assert "does not exist" in missing.stderr


def test_json_is_one_document(options: dict[str, Any]) -> None:
    document = json.loads(CliRunner().invoke(command, ["run", "--data", "images", "--json"]).stdout)

    assert document["deletion"]["fraction_better"] == 0.75
    assert document["schema"] == 1


def test_network_without_weights_is_rejected(maker: Any) -> None:
    run = maker.run()
    images = maker.images(split="train")
    (run / "manifest.csv").write_text(maker.manifest(images, "validation"))

    result = CliRunner().invoke(command, [str(run), "--data", str(images), "--images", "4"])

    assert isinstance(result.exception, UsageError)
    assert "no layer with weights" in str(result.exception)
