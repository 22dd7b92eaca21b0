"""`pneumoscope models`."""

import json
import sys

import pytest
from click.testing import CliRunner

from pneumoscope.bundle.evidence import EVIDENCE
from pneumoscope.bundle.model_card import model_card
from pneumoscope.cli.models import command
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.models.registry import MODELS


def invoke(*arguments):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_describes_every_network():
    found = {row["name"]: row for row in json.loads(invoke("--json"))}

    assert len(found) == len(MODELS)
    assert found["alexnet"] == {
        "name": "alexnet",
        "family": "alexnet",
        "parameters": 58_822_657,
        "image_size": 224,
        "imagenet": "",
        "description": "AlexNet of 2012 in one column, with a dense head instead of fc8",
    }
    assert found["vgg19"]["parameters"] == 23_290_433
    assert "vgg19-dcbb9e9d.pth" in found["vgg19"]["imagenet"]


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_every_network_has_a_line(row):
    line = next(line for line in invoke().splitlines() if line.startswith(f"{row.name} "))

    assert f"{row.parameters:,}" in line
    assert f" {row.image_size} " in line
    assert line.endswith(row.imagenet or "none")


def test_table_needs_no_pytorch(monkeypatch):
    for name in ("torch", "timm", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)  # makes the import fail

    assert "alexnet" in invoke()


def test_card_of_a_run_is_that_of_its_bundle(maker):
    run = maker.run()
    assert invoke("--card", str(run)) == model_card(run / "bundle") == invoke("--card", str(run / "bundle"))


@pytest.mark.parametrize("card_format", ["markdown", "chai", "huggingface"])
def test_card_of_an_evaluated_run_has_its_evaluation(maker, card_format):
    run = maker.run()
    evaluation, _ = evaluate(run, maker.images())
    text = invoke("--card", str(run), "--format", card_format)
    area = "{:.3f} [" if card_format == "markdown" else "{}"
    assert area.format(evaluation.metrics["auroc"].value) in text
    assert EVIDENCE["evaluation"] not in text
    # That of another network is none of this card, and the evidence of the bundle comes first.
    card = json.loads((run / "evaluation/test/evaluation.json").read_text())
    (run / "evaluation/test/evaluation.json").write_text(json.dumps(card | {"bundle_sha256": "0" * 64}))
    assert area.format(evaluation.metrics["auroc"].value) not in invoke("--card", str(run), "--format", card_format)
    own, _ = evaluate(run / "bundle", maker.images("north", seed=2), out=run / "bundle" / "evidence")
    assert own.metrics["auroc"].value != evaluation.metrics["auroc"].value
    assert area.format(own.metrics["auroc"].value) in invoke("--card", str(run), "--format", card_format)


def test_missing_folder_is_named():
    result = CliRunner().invoke(command, ["--card", "no/such/run"])
    assert str(result.exception).startswith("'no/such/run' does not exist")


def test_damaged_evaluation_of_a_run_is_an_error(maker):
    run = maker.run()
    (run / "evaluation/test").mkdir(parents=True)
    (run / "evaluation/test/evaluation.json").write_text("{")
    result = CliRunner().invoke(command, ["--card", str(run)])
    assert isinstance(result.exception, BundleError)
    assert "cannot read the evidence" in str(result.exception)


def test_card_and_json_cannot_be_combined(maker):
    result = CliRunner().invoke(command, ["--card", str(maker.run()), "--json"])
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "chai"], "need --card"),
        (["--developer", "X"], "need --card"),
        (["--card", "--format", "huggingface", "--contact", "X"], "Add --format chai"),
    ],
)
def test_options_without_an_effect_are_errors(options, message):
    assert message in str(CliRunner().invoke(command, options).exception)
