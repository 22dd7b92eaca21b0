"""Weights from the network file of a bundle: every layer is restored, and the restored network has the bundle's logits."""

import hashlib

import msgspec
import numpy as np
import pytest
import torch

from pneumoscope.bundle.bundle_folder import DEFAULT_BUNDLE, read_card
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.core.errors import WeightsError
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.inference.session import BundleSession
from pneumoscope.models import onnx_weights
from pneumoscope.models.factory import create_initialized, create_model
from pneumoscope.training.norm_statistics import estimate_norm_statistics
from pneumoscope.training.onnx_export import export_onnx

pytestmark = pytest.mark.training


def network_with_statistics(name, size):
    """Return a network whose batch norms have statistics, scales and biases as after a training."""
    torch.manual_seed(3)
    network = create_model(name, image_size=size).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2), (module.weight, 0.5, 1.5), (module.bias, -1, 1),
            ):  # fmt: skip
                tensor.data.uniform_(low, high)
        elif isinstance(module, torch.nn.Linear) and module.bias is not None:
            module.bias.data.uniform_(-0.2, 0.2)
    return network


def write_bundle(maker, folder, network, name, size):
    maker.bundle(folder)
    onnx = export_onnx(network, size)
    image = torch.from_numpy(np.array(self_test_image(size)))
    with torch.inference_mode():
        logit = float(network(image)[0])
    card = msgspec.structs.replace(
        read_card(folder / "card.json"),
        network=name,
        preprocessing=Preprocessing(size=size),
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        onnx_bytes=len(onnx),
        self_test_logit=logit,
        recipe={"name": name, "network": {"image_size": size, "flip_averaging": False, "border_mask": 0}},
    )
    (folder / "network.onnx").write_bytes(onnx)
    (folder / "card.json").write_text(card.to_json())
    return folder


def logits(network, size, count=4):
    images = torch.randint(0, 256, (count, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network.eval()(images)


@pytest.mark.parametrize(
    ("name", "size", "folded"),
    [
        ("test_efficientnet", 64, 13),  # batch norms after convolutions
        ("alexnet", 63, 0),  # batch norms between dense layers, which stay in the file
        ("test_vit", 160, 0),  # attention, position embeddings
        ("test_convnext", 64, 0),  # layer norms, scales of blocks
    ],
)
def test_network_from_a_bundle_has_its_logits(maker, tmp_path, name, size, folded):
    original = network_with_statistics(name, size)
    bundle = write_bundle(maker, tmp_path / "bundle", original, name, size)
    torch.manual_seed(8)
    network, loaded = create_initialized(name, str(bundle), {"image_size": size})
    assert torch.allclose(logits(network, size), logits(original, size), atol=1e-4, rtol=1e-4)
    assert logits(original, size).std() > 1e-6
    assert len(loaded.folded) == folded
    assert (loaded.random, loaded.notes) == (frozenset(), ())
    restored, expected = network.state_dict(), original.state_dict()
    different = {key for key, value in expected.items() if not torch.allclose(restored[key], value, atol=1e-6)}
    assert (different == set()) == (folded == 0)


def test_network_from_the_model_in_the_package_has_its_logits():
    options = {"image_size": 224, "output_stride": 16, "border_mask": 12, "flip_averaging": True}
    network, loaded = create_initialized("tf_efficientnet_lite0", "default", options)
    session = BundleSession.load(DEFAULT_BUNDLE)
    pixels = np.stack([draw_phantom(seed, seed % 2 == 0, size=224) for seed in range(4)])
    with torch.inference_mode():
        found = network.eval()(torch.from_numpy(pixels)).numpy()
    expected = session.logits(pixels)
    assert np.abs(found - expected).max() < 1e-3 * np.maximum(1, np.abs(expected)).max()
    assert loaded.seen == {each for hashes in session.card.seen.values() for each in hashes}
    assert len(loaded.seen) > 4000
    assert loaded.notes == ()


def test_options_that_change_the_logits_are_noted(maker, tmp_path):
    bundle = write_bundle(maker, tmp_path / "bundle", network_with_statistics("test_convnext", 64), "test_convnext", 64)
    _, loaded = create_initialized("test_convnext", str(bundle), {"image_size": 96, "border_mask": 4})
    (note,) = loaded.notes
    assert "because of image_size 64 there and 96 here, border_mask 0 there and 4 here" in note


def test_bundle_of_another_network_is_an_error_that_names_both(maker, tmp_path):
    bundle = maker.bundle(tmp_path / "bundle")
    with pytest.raises(
        WeightsError, match=r"has the network 'mean-gray', and the recipe 'test_resnet'.*network.name=mean-gray"
    ):
        create_model("test_resnet", weights=str(bundle))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty' is neither a bundle nor a run with weights"):
        create_model("test_resnet", weights=str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match=r"there are no weights '.*absent'"):
        create_model("test_resnet", weights=str(tmp_path / "absent"))


def test_weights_that_do_not_give_the_logit_on_the_card_are_refused(maker, tmp_path):
    original = network_with_statistics("test_convnext", 64)
    bundle = write_bundle(maker, tmp_path / "bundle", original, "test_convnext", 64)
    card = read_card(bundle / "card.json")
    changed = msgspec.structs.replace(card, self_test_logit=card.self_test_logit + 0.01)
    with pytest.raises(WeightsError, match=r"has the logit .* for the self-test image; the card has"):
        onnx_weights.check_self_test(original, changed, "bundle")
    onnx_weights.check_self_test(original, card, "bundle")


def test_estimated_statistics_keep_the_logits_and_let_a_batch_norm_train_as_before(maker, tmp_path):
    size = 64
    original = network_with_statistics("test_efficientnet", size)
    pixels = np.stack([draw_phantom(seed, seed % 2 == 0, size=size) for seed in range(48)])
    estimate_norm_statistics(
        original, [name for name, module in original.named_modules() if "bn" in name.rpartition(".")[2]], pixels
    )  # as after a training on these images
    bundle = write_bundle(maker, tmp_path / "bundle", original, "test_efficientnet", size)
    network, loaded = create_initialized("test_efficientnet", str(bundle), {"image_size": size})
    images = torch.from_numpy(pixels)

    def in_training():
        with torch.no_grad():
            return network.train()(images)

    with torch.inference_mode():
        expected = original.eval()(images)
    without = (in_training() - expected).abs().max()
    network, loaded = create_initialized("test_efficientnet", str(bundle), {"image_size": size})
    estimate_norm_statistics(network, loaded.folded, pixels)
    with torch.inference_mode():
        assert torch.allclose(network.eval()(images), expected, atol=1e-4)
    found, reference = network.state_dict(), original.state_dict()
    name = sorted(loaded.folded)[0]
    scale = reference[f"{name}.weight"].abs()
    assert torch.allclose(found[f"{name}.weight"].abs(), scale, rtol=1e-3)
    with_statistics = (in_training() - expected).abs().max()
    assert with_statistics < 0.1 * without
