"""The table of networks: correct, complete, and readable without torch."""

import json
import subprocess
import sys

import pytest

from pneumoscope.models.registry import MODELS, find_model, list_models


@pytest.mark.training
@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_every_network_has_the_stated_number_of_parameters_at_its_default_size(spec):
    from pneumoscope.models.factory import create_model

    network = create_model(spec.name)

    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == spec.parameters
    assert getattr(network, "image_size", spec.image_size) == spec.image_size


def test_report_networks_have_the_reports_number_of_parameters():
    assert find_model("alexnet").parameters == 58_822_657
    assert find_model("alexnet-fc8").parameters == 62_517_177
    assert find_model("vgg19").parameters == 23_290_433
    assert find_model("no-such-network") is None


def test_list_models_has_unique_names_and_states_every_source_of_imagenet_weights():
    names = [spec.name for spec in list_models()]

    assert len(set(names)) == len(names)
    assert [spec.name for spec in list_models() if not spec.imagenet] == ["alexnet", "alexnet-fc8"]


def test_cli_lists_networks_without_importing_torch():
    script = (
        "import sys\nfrom pneumoscope.cli import cli\n"
        "cli.main(['models', '--json'], standalone_mode=False)\n"
        "print(sorted({'torch', 'timm', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert result.stderr.strip() == "[]"
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == [spec.name for spec in MODELS]
    assert set(rows[0]) >= {"name", "family", "parameters", "image_size", "imagenet"}


@pytest.mark.training
def test_create_model_uses_timms_default_size_for_unlisted_networks():
    from pneumoscope.models.factory import create_model

    assert find_model("crossvit_tiny_240") is None
    assert create_model("crossvit_tiny_240").image_size == 240
