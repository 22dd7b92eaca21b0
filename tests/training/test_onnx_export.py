"""The exported network agrees with PyTorch for any number of images, and a disagreement is an error."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from pneumoscope.bundle.card import FORMAT, INPUT_CLASSES, LABELS, Calibration, Card, Parity
from pneumoscope.bundle.multiclass_card import MulticlassCard, TemperatureScaling
from pneumoscope.core.errors import BundleError, ParityError
from pneumoscope.core.population import Population
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.inference.decision import sigmoid
from pneumoscope.inference.multiclass_session import MulticlassSession
from pneumoscope.inference.session import OUTPUTS, BundleSession
from pneumoscope.models.factory import create_model
from pneumoscope.models.input_checks import AgeClassifier, FeatureExtractor, InputChecks, InputClassifier
from pneumoscope.training.input_checks import fit_mahalanobis
from pneumoscope.training.onnx_export import check_logits, check_outputs, convolution_backward, export_onnx

pytestmark = pytest.mark.training


def session(content, size):
    card = Card(
        format=FORMAT, labels=LABELS, population=Population(),
        name="test", network="test", parameters=1, version="0", created="", onnx_sha256="", onnx_bytes=0,
        self_test_logit=0, intervals=None, rejection_limits=None, reference_distribution=None, age_range=None,
        preprocessing=Preprocessing(size=size), calibration=Calibration(slope=1, intercept=0, method="none", n=0, prevalence=0.5),
        operating_points={}, parity=Parity(images=0, largest=0),
        recipe={}, seed=0, manifest_sha256="", split_by="image", counts={}, seen={}, best_epoch=1, machine={},
    )  # fmt: skip
    return BundleSession(card, content)


def class_session(content, size):
    card = MulticlassCard(
        format=3, classes=("a", "b", "c"), activation="softmax", population=Population(),
        name="test", network="test", parameters=1, version="0", created="", onnx_sha256="", onnx_bytes=0,
        self_test_logits=(0, 0, 0), prediction_sets=None, rejection_limits=None, age_range=None,
        preprocessing=Preprocessing(size=size), calibration=TemperatureScaling(temperature=1, method="none", n=0),
        parity=Parity(images=0, largest=0), recipe={}, seed=0, manifest_sha256="", split_by="image", counts={}, seen={},
        best_epoch=1, machine={},
    )  # fmt: skip
    return MulticlassSession(card, content)


def in_place(network):
    return [getattr(module, "inplace", None) for module in network.modules()]


# Network, image size, and size of the heatmap.
NETWORKS = (
    ("alexnet", 95, (2, 2)),  # dense layers on the flattened map
    ("vgg19", 64, (2, 2)),
    ("tf_efficientnet_lite0", 64, (2, 2)),  # pooling and one linear layer
    ("mobilenetv3_small_050", 64, (2, 2)),  # a convolution after the pooling
    ("test_convnext", 64, (2, 2)),  # a normalization after the pooling; channels-last maps
    ("test_vit2", 64, (4, 4)),  # mean over tokens
)


# Flips are averaged in one way for maps that are pooled, and in another for all others.
FLIP_AVERAGED = ("alexnet", "tf_efficientnet_lite0", "test_vit2")


@pytest.mark.parametrize(
    ("name", "size", "grid", "flip_averaging"),
    [
        (*network, flip_averaging)
        for network in NETWORKS
        for flip_averaging in (False, True)
        if network[0] in FLIP_AVERAGED or not flip_averaging
    ],
)
def test_exported_network_agrees_with_pytorch(name, size, grid, flip_averaging):
    torch.manual_seed(2)
    network = create_model(name, image_size=size, flip_averaging=flip_averaging)
    random = np.random.default_rng(1)
    images = (random.integers(0, 256, (64, size, size)) * random.uniform(0, 1, (64, 1, 1))).astype(np.uint8)
    for layer in network.modules():  # batch statistics of these images, so that logits differ between images
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.from_numpy(images))
    network.eval()
    before, weights = in_place(network), {name: tensor.clone() for name, tensor in network.state_dict().items()}

    content = export_onnx(network, size)
    outputs = session(content, size).outputs(images, heatmaps=True)

    # The export leaves the network as it is.
    assert in_place(network) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    if name == "mobilenetv3_small_050":
        assert True in before
    assert check_logits(network, images, outputs.logit).largest <= 4e-4
    expected = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(sigmoid(outputs.logit), sigmoid(expected), rtol=0, atol=1e-4)
    check_outputs(network, images, outputs)
    assert outputs.logit.std() > 0.001
    assert outputs.heatmap.shape == (64, *grid)
    assert outputs.heatmap.std(axis=0).min() > 0
    if name == "tf_efficientnet_lite0":
        bias = network.model.classifier.bias.item()
        np.testing.assert_allclose(outputs.heatmap.sum((1, 2)) + bias, outputs.logit, rtol=1e-4, atol=1e-5)
    # Logit and heatmap share their weights: no large tensor is stored twice, not even transposed.
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer]
    large = [
        np.sort(tensor, axis=None)[::7].tobytes() for tensor in tensors if tensor.ndim > 1 and tensor.size > 10_000
    ]
    assert large
    assert len(set(large)) == len(large)


# Average pooling and a linear layer, a layer with an activation after the pooling, a normalization after it, mean over tokens.
@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050", "test_convnext", "test_vit2"])
def test_exported_network_of_several_classes_has_a_heatmap_of_each(name):
    torch.manual_seed(0)
    network = create_model(name, image_size=64, outputs=3, flip_averaging=True).eval()
    content = export_onnx(network, 64)
    images = noise(5, 64)
    outputs = class_session(content, 64).outputs(images, heatmaps=True)
    with torch.no_grad():
        logits, heatmaps = network.class_activation(torch.from_numpy(images))
    np.testing.assert_allclose(outputs.logits, logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.heatmap, heatmaps.numpy(), rtol=1e-3, atol=1e-5)
    check_outputs(network, images, outputs)
    with pytest.raises(ParityError, match="'heatmap'"):
        check_outputs(network, images, dataclasses.replace(outputs, heatmap=outputs.heatmap[:, [1, 0, 2]]))


# A class token, so that no position contributes to the logit; and attention, whose gradient ONNX cannot express.
@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_network_without_class_activation_is_exported_without_heatmap(name):
    torch.manual_seed(0)
    network = create_model(name, image_size=64).eval()
    images = noise(5)
    exported = session(export_onnx(network, 64), 64)

    assert check_logits(network, images, exported.logits(images)).images == 5
    with pytest.raises(BundleError, match="heatmap"):
        exported.outputs(images, heatmaps=True)


@pytest.mark.parametrize(("groups", "padding"), [(1, 0), (2, 1), (4, 0)])
def test_gradient_of_a_convolution_agrees_with_autograd(groups, padding):
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 5, 5, requires_grad=True)
    weight = torch.randn(8, 4 // groups, 3, 3)
    outputs = torch.nn.functional.conv2d(inputs, weight, padding=padding, groups=groups)
    gradient = torch.randn(outputs.shape)
    (expected,) = torch.autograd.grad(outputs, inputs, gradient)

    rest = ([padding] * 2, [1, 1], False, [0, 0], groups, [True, False, False])
    gradients = convolution_backward(gradient, inputs, weight, None, [1, 1], *rest)

    torch.testing.assert_close(gradients[0], expected)
    assert gradients[1:] == (None, None)
    assert convolution_backward(gradient, inputs, weight, None, [2, 2], *rest) is NotImplemented


@pytest.fixture(scope="module")
def exported():
    """A small network, its input checks, and the exported file."""
    torch.manual_seed(0)
    network = create_model("test_efficientnet", image_size=64).eval()
    extractor = FeatureExtractor()
    with torch.no_grad():
        features = extractor(torch.randint(0, 256, (90, 64, 64), dtype=torch.uint8))
    classifier, detector = InputClassifier(len(INPUT_CLASSES)).eval(), fit_mahalanobis(features.numpy())
    checks = InputChecks(classifier, extractor, detector, AgeClassifier().eval())
    return network, checks, export_onnx(network, 64, checks)


def noise(count, size=64):
    return np.random.default_rng(1).integers(0, 256, (count, size, size)).astype(np.uint8)


def test_file_has_its_weights_and_accepts_any_number_of_images(exported):
    _, _, content = exported
    graph = onnx.load_from_string(content).graph

    assert [(value.name, value.type.tensor_type.elem_type) for value in graph.input] == [
        ("image", onnx.TensorProto.UINT8)
    ]
    assert [
        (value.name, value.type.tensor_type.elem_type, [side.dim_value for side in value.type.tensor_type.shape.dim])
        for value in graph.output
    ] == [
        ("logit", onnx.TensorProto.FLOAT, [0]),
        ("heatmap", onnx.TensorProto.FLOAT, [0, 2, 2]),
        ("input_classes", onnx.TensorProto.FLOAT, [0, len(INPUT_CLASSES)]),
        ("ood_distance", onnx.TensorProto.FLOAT, [0]),
        ("age_score", onnx.TensorProto.FLOAT, [0]),
    ]
    assert not [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for count in (1, 2, 5):
        outputs = session(content, 64).outputs(np.zeros((count, 64, 64), np.uint8), heatmaps=True)
        assert [len(getattr(outputs, name)) for name in OUTPUTS] == [count] * 5


def test_file_has_no_metadata_of_the_machine_and_is_reproducible(exported):
    network, checks, content = exported
    assert b"site-packages" not in content
    assert b"pneumoscope" not in content
    assert b"stack_trace" not in content
    assert export_onnx(network, 64, checks) == content


def test_differing_logits_are_an_error_with_the_difference(exported):
    network, _, content = exported
    images = noise(4)
    outputs = session(content, 64).outputs(images, heatmaps=True)

    with pytest.raises(ParityError, match=r"differ from PyTorch by up to 0.01 .* on 4 images \(tolerance 0.0004"):
        check_logits(network, images, outputs.logit + np.float32(0.01))
    with pytest.raises(ParityError, match="nan"):
        check_logits(network, images, outputs.logit * np.float32("nan"))


def heatmap_scale(network, images):
    """Return the largest sum over channels of |feature map x gradient|, by autograd."""
    maps = network.forward_features(network.normalize(torch.from_numpy(images))).detach().requires_grad_()
    network.forward_head(maps).sum().backward()
    return (maps * maps.grad).abs().sum(1).max().item()


def test_heatmap_whose_contributions_cancel_passes():
    # One position before a LayerNorm: its contribution is zero to within rounding, of terms ten thousand times larger.
    torch.manual_seed(0)
    network = create_model("test_convnext", image_size=48).eval()
    images = noise(12, 48)
    outputs = session(export_onnx(network, 48), 48).outputs(images, heatmaps=True)
    assert outputs.heatmap.shape == (12, 1, 1)
    assert np.abs(outputs.heatmap).max() < 1e-3 * heatmap_scale(network, images)

    check_outputs(network, images, outputs)


@pytest.mark.parametrize(
    ("name", "count", "difference", "message"),
    [
        ("heatmap", 3, 0.02, "by up to 0.02 of its scale on 12 images, by 0.02 without the 2 largest"),
        ("heatmap", 1, 0.2, "by up to 0.2 of its scale on 12 images, by .*e-0. without the 2 largest"),
        ("input_classes", 1, 0.02, "by up to 0.02 of its scale on 12 images .tolerance 0.001"),
        ("ood_distance", 1, 0.02, "by up to 0.02 of its scale on 12 images .tolerance 0.001"),
        ("age_score", 1, 0.02, "by up to 0.02 of its scale on 12 images .tolerance 0.001"),
    ],
)
def test_differing_output_is_an_error_with_the_difference(exported, name, count, difference, message):
    network, checks, content = exported
    images = noise(12)
    outputs = session(content, 64).outputs(images, heatmaps=True)
    scales = {
        "heatmap": heatmap_scale(network, images),
        "input_classes": 1,
        "ood_distance": outputs.ood_distance.max(),
        "age_score": 1,
    }
    changed = getattr(outputs, name).copy()
    changed[:count].reshape(count, -1)[:, -1] += np.float32(difference) * scales[name]

    with pytest.raises(ParityError, match=f"output '{name}' of the exported network differs from PyTorch {message}"):
        check_outputs(network, images, dataclasses.replace(outputs, **{name: changed}), checks)


def test_equal_outputs_pass(exported):
    network, checks, content = exported
    images = noise(12)

    check_outputs(network, images, session(content, 64).outputs(images, heatmaps=True), checks)


def test_few_outliers_of_heatmaps_pass(exported):
    # Two of twelve, as for ReLUs whose input is zero to within rounding.
    network, _, content = exported
    images = noise(12)
    outputs = session(content, 64).outputs(images, heatmaps=True)
    outputs.heatmap[:2, 0, 0] += np.float32(0.02) * heatmap_scale(network, images)

    check_outputs(network, images, outputs)


@pytest.mark.parametrize("name", ["heatmap", "input_classes", "ood_distance"])
def test_non_finite_output_is_an_error(exported, name):
    network, checks, content = exported
    images = noise(12)
    outputs = session(content, 64).outputs(images, heatmaps=True)
    changed = getattr(outputs, name).copy()
    changed[0] = np.nan

    with pytest.raises(ParityError, match="nan"):
        check_outputs(network, images, dataclasses.replace(outputs, **{name: changed}), checks)
