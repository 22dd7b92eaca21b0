"""The exported network says what torch says, for any number of images; where it does not, nothing is written."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from tests.conftest import LIMITS

from pneumoscope.bundle.card import FORMAT, INPUT_CLASSES, LABELS, Calibration, Card, Parity, read_bundle
from pneumoscope.core.errors import BundleError, ParityError
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.inference.session import OUTPUTS, BundleSession, Outputs, sigmoid
from pneumoscope.models.factory import create_model
from pneumoscope.models.input_checks import FeatureExtractor, InputChecks, InputClassifier
from pneumoscope.runs.recipe import RejectionOptions, read_recipe
from pneumoscope.training import export as module
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import derive_seed
from pneumoscope.training.onnx_export import _convolve_back, to_onnx
from pneumoscope.training.ood import fit_mahalanobis
from pneumoscope.training.parity import check_explanations, check_parity

pytestmark = pytest.mark.training


def session(content, size):
    card = Card(
        format=FORMAT, labels=LABELS,
        name="test", network="test", parameters=1, version="0", created="", onnx_sha256="", onnx_bytes=0,
        self_test_logit=0, intervals=None, rejection_limits=None, reference_distribution=None, age_range=None,
        preprocessing=Preprocessing(size=size), calibration=Calibration(slope=1, intercept=0, method="none", n=0, prevalence=0.5),
        operating_points={}, parity=Parity(images=0, largest=0),
        recipe={}, seed=0, manifest_sha256="", split_by="image", counts={}, seen={}, best_epoch=1, machine={},
    )  # fmt: skip
    return BundleSession(card, content)


NOISE = np.random.default_rng(1)
LIKE_IMAGES = (
    ("alexnet", 95, (2, 2)),  # dense layers on the flattened map
    ("vgg19", 64, (2, 2)),
    ("tf_efficientnet_lite0", 64, (2, 2)),  # pooling and one linear layer
    ("mobilenetv3_small_050", 64, (2, 2)),  # a convolution behind the pooling
    ("test_convnext", 64, (2, 2)),  # a norm behind the pooling, maps in channels last
    ("test_vit2", 64, (4, 4)),  # tokens, of which the mean is taken
)


# VGG19 has AlexNet's head, and its export is the slowest: once is enough.
@pytest.mark.parametrize(
    ("name", "size", "places", "mirrored"),
    [
        (*row, flip_averaging)
        for row in LIKE_IMAGES
        for flip_averaging in (False, True)
        if (row[0], flip_averaging) != ("vgg19", True)
    ],
)
def test_onnx_and_torch_agree_on_64_images(name, size, places, flip_averaging):
    torch.manual_seed(2)
    network = create_model(name, image_size=size, flip_averaging=flip_averaging)
    images = (NOISE.integers(0, 256, (64, size, size)) * NOISE.uniform(0, 1, (64, 1, 1))).astype(np.uint8)
    for layer in network.modules():  # batch statistics of these images, so that logits differ from image to image
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.from_numpy(images))
    network.eval()

    content = to_onnx(network, size)
    outputs = session(content, size).outputs(images, heatmaps=True)

    assert check_parity(network, images, outputs.logit).largest <= 4e-4
    own = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(sigmoid(outputs.logit), sigmoid(own), rtol=0, atol=1e-4)
    check_explanations(network, images, outputs)
    assert outputs.logit.std() > 0.001
    assert outputs.heatmap.shape == (64, *places)
    assert outputs.heatmap.std(axis=0).min() > 0
    if name == "tf_efficientnet_lite0":
        bias = network.model.classifier.bias.item()
        np.testing.assert_allclose(outputs.heatmap.sum((1, 2)) + bias, outputs.logit, rtol=1e-4, atol=1e-5)
    # Both branches share their weights: no large one is there twice, as it is or transposed.
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer]
    large = [
        np.sort(tensor, axis=None)[::7].tobytes() for tensor in tensors if tensor.ndim > 1 and tensor.size > 10_000
    ]
    assert large
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_what_cannot_be_explained_is_exported_for_its_logits(name):
    """A class token, on which no place has a bearing any more; attention, whose gradient ONNX cannot say."""
    torch.manual_seed(0)
    network = create_model(name, image_size=64).eval()
    images = NOISE.integers(0, 256, (5, 64, 64)).astype(np.uint8)
    exported = session(to_onnx(network, 64), 64)

    assert check_parity(network, images, exported.logits(images)).images == 5
    with pytest.raises(BundleError, match="gives no heatmaps"):
        exported.outputs(images, heatmaps=True)


@pytest.mark.parametrize(("groups", "padding"), [(1, 0), (2, 1), (4, 0)])
def test_a_convolution_is_differentiated_as_torch_does(groups, padding):
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 5, 5, requires_grad=True)
    weight = torch.randn(8, 4 // groups, 3, 3)
    outputs = torch.nn.functional.conv2d(inputs, weight, padding=padding, groups=groups)
    gradient = torch.randn(outputs.shape)
    (expected,) = torch.autograd.grad(outputs, inputs, gradient)

    rest = ([padding] * 2, [1, 1], False, [0, 0], groups, [True, False, False])
    found = _convolve_back(gradient, inputs, weight, None, [1, 1], *rest)

    torch.testing.assert_close(found[0], expected)
    assert found[1:] == (None, None)
    assert _convolve_back(gradient, inputs, weight, None, [2, 2], *rest) is NotImplemented


@pytest.fixture(scope="module")
def small():
    """A small network, what looks at images beside it, and their file."""
    torch.manual_seed(0)
    network = create_model("test_efficientnet", image_size=64).eval()
    with torch.no_grad():
        features = (eye := FeatureExtractor())(torch.randint(0, 256, (90, 64, 64), dtype=torch.uint8))
    screen = InputChecks(InputClassifier(len(INPUT_CLASSES)).eval(), eye, fit_mahalanobis(features.numpy()))
    return network, screen, to_onnx(network, 64, screen)


def test_the_file_is_one_and_takes_any_number_of_images(small):
    _, _, content = small
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
        ("distance", onnx.TensorProto.FLOAT, [0]),
    ]
    assert not [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for count in (1, 2, 5):
        outputs = session(content, 64).outputs(np.zeros((count, 64, 64), np.uint8), heatmaps=True)
        assert [len(getattr(outputs, name)) for name in OUTPUTS] == [count] * 4


def test_a_difference_is_refused_with_its_size(small):
    network, _, content = small
    images = NOISE.integers(0, 256, (4, 64, 64)).astype(np.uint8)
    outputs = session(content, 64).outputs(images, heatmaps=True)

    with pytest.raises(ParityError, match=r"differ from torch's by up to 0.01 .* on 4 images \(at most 0.0004"):
        check_parity(network, images, outputs.logit + np.float32(0.01))
    with pytest.raises(ParityError, match="nan"):
        check_parity(network, images, outputs.logit * np.float32("nan"))


def scale(network, images):
    """Of heatmaps: the largest sum over channels of |map x gradient|, by autograd."""
    maps = network.forward_features(network.normalize(torch.from_numpy(images))).detach().requires_grad_()
    network.forward_head(maps).sum().backward()
    return (maps * maps.grad).abs().sum(1).max().item()


def test_a_heatmap_whose_terms_cancel_to_nothing_agrees():
    """One place before a LayerNorm: its contribution is zero to within rounding, of terms ten thousand times larger."""
    torch.manual_seed(0)
    network = create_model("test_convnext", image_size=48).eval()
    images = NOISE.integers(0, 256, (12, 48, 48)).astype(np.uint8)
    outputs = session(to_onnx(network, 48), 48).outputs(images, heatmaps=True)
    assert outputs.heatmap.shape == (12, 1, 1)
    assert np.abs(outputs.heatmap).max() < 1e-3 * scale(network, images)

    check_explanations(network, images, outputs)


@pytest.mark.parametrize(
    ("name", "images_off", "by", "words"),
    [
        ("heatmap", 3, 0.02, "by up to 0.02 of its scale on 12 images, by 0.02 without the worst 2"),
        ("heatmap", 1, 0.2, "by up to 0.2 of its scale on 12 images, by .*e-0. without the worst 2"),
        ("input_classes", 1, 0.02, "by up to 0.02 of its scale on 12 images .at most 0.001"),
        ("distance", 1, 0.02, "by up to 0.02 of its scale on 12 images .at most 0.001"),
    ],
)
def test_another_explanation_is_refused_with_its_size(small, name, images_off, by, words):
    network, screen, content = small
    images = NOISE.integers(0, 256, (12, 64, 64)).astype(np.uint8)
    outputs = session(content, 64).outputs(images, heatmaps=True)
    wrong = getattr(outputs, name).copy()
    wrong[:images_off].reshape(images_off, -1)[:, -1] += np.float32(by) * {
        "heatmap": scale(network, images), "input_classes": 1, "distance": outputs.distance.max()
    }[name]  # fmt: skip

    with pytest.raises(ParityError, match=f"output '{name}' of the exported network differs from torch's {words}"):
        check_explanations(network, images, dataclasses.replace(outputs, **{name: wrong}), screen)


def test_what_is_as_it_should_be_passes(small):
    network, screen, content = small
    images = NOISE.integers(0, 256, (12, 64, 64)).astype(np.uint8)

    check_explanations(network, images, session(content, 64).outputs(images, heatmaps=True), screen)


def test_a_few_heatmaps_may_jump(small):
    """Two of twelve, as where a ReLU's input is zero to within rounding."""
    network, _, content = small
    images = NOISE.integers(0, 256, (12, 64, 64)).astype(np.uint8)
    outputs = session(content, 64).outputs(images, heatmaps=True)
    outputs.heatmap[:2, 0, 0] += np.float32(0.02) * scale(network, images)

    check_explanations(network, images, outputs)


@pytest.mark.parametrize("name", ["heatmap", "input_classes", "distance"])
def test_an_explanation_that_is_no_number_is_refused(small, name):
    network, screen, content = small
    images = NOISE.integers(0, 256, (12, 64, 64)).astype(np.uint8)
    outputs = session(content, 64).outputs(images, heatmaps=True)
    wrong = getattr(outputs, name).copy()
    wrong[0] = np.nan

    with pytest.raises(ParityError, match="nan"):
        check_explanations(network, images, dataclasses.replace(outputs, **{name: wrong}), screen)


def test_limits_by_hand():
    """Of 40 images shares of 0.05 and 0.1 are two and four: the third lowest probability and the fifth highest distance."""
    input_classes = np.zeros((40, len(INPUT_CLASSES)), np.float32)
    input_classes[:, 0] = np.r_[0.1, 0.2, 0.3, np.linspace(0.6, 0.99, 37)]
    distance = np.r_[np.ones(35), 2.0, 3.0, 4.0, 5.0, 6.0].astype(np.float32)
    logit = np.zeros(40, np.float32)
    parts = [Outputs(logit[part], None, input_classes[part], distance[part]) for part in (slice(0, 30), slice(30, 40))]

    shares = RejectionOptions(classifier_share=0.05, distance_share=0.1)
    # As they are, one image more is no image, and all are near.
    plain = [dataclasses.replace(part, distance=np.ones_like(part.distance)) for part in parts]
    plain[1] = dataclasses.replace(plain[1], input_classes=np.minimum(plain[1].input_classes, np.float32(0.29)))

    limits = module._limits(plain, parts, shares, [""] * 40)

    assert (limits.min_upright, limits.max_distance) == (pytest.approx(0.3), 2.0)
    assert (limits.rejected.value, limits.rejected.n) == (12 / 40, 40)
    assert limits.input_classes == INPUT_CLASSES
    # A gate that is sure of all images refuses only what is less likely an image than not.
    sure = [dataclasses.replace(part, input_classes=np.maximum(part.input_classes, np.float32(0.9))) for part in parts]
    assert module._limits(plain, sure, shares, [""] * 40).min_upright == 0.5


def test_the_spread_is_of_the_images_that_are_not_refused(maker):
    """Of 22 images in two runs the first is no image and the last far away: deciles and labels are of the 20 between."""
    card, _ = read_bundle(
        maker.bundle(maker.root / "b", rejection_limits=LIMITS)
    )  # probability = sigmoid(0.8 x logit + 0.1)
    logit = np.r_[99.0, np.linspace(-3, 3, 20), -99.0].astype(np.float32)
    input_classes = np.zeros((22, len(INPUT_CLASSES)), np.float32)
    input_classes[:, 0], input_classes[0, 0] = 0.9, LIMITS.min_upright - 0.01
    distance = np.r_[np.ones(21), LIMITS.max_distance + 0.1].astype(np.float32)
    parts = [Outputs(logit[part], None, input_classes[part], distance[part]) for part in (slice(0, 16), slice(16, 22))]
    spread = module._spread(card, parts, np.arange(22) % 2 == 0)
    between = 1 / (1 + np.exp(-(0.8 * np.linspace(-3, 3, 20) + 0.1)))
    assert spread.deciles == pytest.approx(np.quantile(between, np.arange(0.1, 0.95, 0.1)), rel=1e-5)
    assert (spread.n, spread.n_pneumonia) == (20, 10)
    none = [dataclasses.replace(part, input_classes=np.zeros_like(part.input_classes)) for part in parts]
    assert module._spread(card, none, np.ones(22, np.bool_)) is None


def test_the_points_on_the_card_are_those_of_the_statistics():
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([False, False, False, True, True, True])

    operating_points = module._points(scores, labels, [""] * 6)

    assert operating_points["balanced"].threshold == pytest.approx(0.65)
    assert operating_points["rule_out"].threshold == pytest.approx(0.7)
    assert operating_points["rule_in"].threshold == pytest.approx(0.65)
    assert [point.chosen_on for point in operating_points.values()] == [
        "fixed",
        "validation",
        "validation",
        "validation",
    ]
    assert "6 validation images" in operating_points["balanced"].rule
    assert "3 validation normals" in operating_points["rule_in"].rule
    # At 0.5 one of three normals, 0.6, is called pneumonia; Wilson's interval of 2 of 3 is [0.208, 0.939].
    specificity = operating_points["half"].specificity
    assert (specificity.value, specificity.n, specificity.method) == (pytest.approx(2 / 3), 3, "wilson")
    assert (specificity.low, specificity.high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    assert operating_points["half"].sensitivity.value == 1


def test_the_band_needs_nineteen_images_of_each_label_for_its_coverage():
    """Of 20 ranks a coverage of 0.95 gives up one: the strangest image of each label is the band's end."""
    scores = np.r_[np.linspace(0, 0.6, 19), np.linspace(0.4, 1, 19)]
    labels = np.repeat([False, True], 19)

    uncertainty_band = module._points(scores, labels, [""] * 38)["balanced"].uncertainty_band

    assert (uncertainty_band.low, uncertainty_band.high) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (uncertainty_band.coverage, uncertainty_band.n_normal, uncertainty_band.n_pneumonia) == (0.95, 19, 19)
    assert all(
        point.uncertainty_band is None
        for name, point in module._points(scores, labels, [""] * 38).items()
        if name != "balanced"
    )
    assert module._points(scores[1:], labels[1:], [""] * 37)["balanced"].uncertainty_band is None


def test_the_file_says_nothing_of_the_machine_and_is_the_same_each_time(small):
    """Where each operation came from is noted by the exporter, with paths, in no fixed order."""
    network, screen, content = small
    assert b"site-packages" not in content
    assert b"pneumoscope" not in content
    assert b"stack_trace" not in content
    assert to_onnx(network, 64, screen) == content


def test_images_that_thresholds_are_fitted_on_are_each_augmented_once(small):
    _, _, content = small
    images = np.random.default_rng(3).integers(0, 200, (40, 64, 64), dtype=np.uint8)  # more than go through at once
    recipe = read_recipe("quick", ["network.image_size=64", "training.seed=5"])
    scorer = session(content, 64)

    found = np.concatenate([scorer.logits(part) for part in module._augmented(images, recipe.augmentation, 5)])

    seeds = [derive_seed(5, place, 9) for place in range(40)]
    changed = augment(torch.from_numpy(images), recipe.augmentation, seeds).round().to(torch.uint8).numpy()
    np.testing.assert_allclose(found, scorer.logits(changed), rtol=0, atol=2e-6)
    assert np.abs(found - scorer.logits(images)).max() > 1e-4  # an untrained network says little


def test_a_rising_score_goes_from_normal_over_uncertain_to_pneumonia():
    """The band reaches to the threshold, which otherwise may lie beside it."""
    random = np.random.default_rng(0)
    for _ in range(20):
        labels = np.repeat([False, True], 40)
        scores = 1 / (1 + np.exp(-random.normal(np.where(labels, 1.5, -1.5), random.uniform(0.3, 3))))
        point = module._points(scores, labels, [""] * 80)["balanced"]
        assert point.uncertainty_band.low <= point.threshold <= point.uncertainty_band.high
        outside = [scores[~labels] > point.uncertainty_band.high, scores[labels] < point.uncertainty_band.low]
        assert all(wrong.mean() <= 0.05 for wrong in outside)
