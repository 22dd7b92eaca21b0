"""The table says what is true of the networks, and can be read without torch."""

import json
import subprocess
import sys

import pytest

from pneumoscope.models.registry import NETWORKS


@pytest.mark.training
@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.name)
def test_every_row_builds_and_has_the_parameters_that_it_states(row):
    from pneumoscope.models.factory import build

    network = build(row.name, image_size=row.image_size)

    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == row.parameters


def test_the_reports_networks_have_the_reports_counts():
    parameters = {row.name: row.parameters for row in NETWORKS}

    assert parameters["alexnet"] == 58_822_657
    assert parameters["alexnet-fc8"] == 62_517_177
    assert parameters["vgg19"] == 23_290_433


def test_names_are_unique_and_every_imagenet_source_is_stated():
    names = [row.name for row in NETWORKS]

    assert len(set(names)) == len(names)
    assert [row.name for row in NETWORKS if not row.imagenet] == ["alexnet", "alexnet-fc8"]


def test_models_prints_without_torch():
    script = (
        "import sys\nfrom pneumoscope.cli import cli\n"
        "cli.main(['models', '--json'], standalone_mode=False)\n"
        "print(sorted({'torch', 'timm', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    )

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stderr.strip() == "[]"
    rows = json.loads(ran.stdout)
    assert [row["name"] for row in rows] == [row.name for row in NETWORKS]
    assert set(rows[0]) >= {"name", "family", "parameters", "image_size", "imagenet"}
