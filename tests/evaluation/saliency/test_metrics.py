"""Deletion, insertion and weight randomization, on networks small enough to know the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pneumoscope.core.errors import UsageError
from pneumoscope.evaluation.saliency.metrics import (
    perturbation_aucs,
    random_heatmap,
    rank_correlation,
    shuffle_weights,
)
from pneumoscope.inference.session import BundleSession


def test_random_heatmap_has_the_same_spectrum_and_mean() -> None:
    heatmap = np.random.default_rng(1).normal(2, 1, (7, 7)) + np.linspace(0, 5, 7)

    random = random_heatmap(heatmap, np.random.default_rng(2))

    np.testing.assert_allclose(abs(np.fft.fft2(random)), abs(np.fft.fft2(heatmap)), rtol=1e-9)
    assert random.mean() == pytest.approx(heatmap.mean())
    assert abs(random - heatmap).max() > 1


def test_heatmap_of_the_relevant_pixels_has_better_areas_than_its_opposite(maker: Any) -> None:
    """The network uses the mean gray level: dark pixels speak against pneumonia, and blurring brightens them."""
    session = BundleSession.load(maker.bundle(maker.root / "bundle", gain=0.05))
    image = np.full((16, 16), 100, np.uint8)
    image[4:8, 4:8] = 0
    heatmap = np.zeros((4, 4))
    heatmap[1, 1] = -1

    deletion, insertion = perturbation_aucs(session, image, heatmap, -1)
    opposite_deletion, opposite_insertion = perturbation_aucs(session, image, -heatmap, -1)

    assert deletion < opposite_deletion
    assert insertion > opposite_insertion
    assert 0.5 < deletion < insertion < 1


def test_network_that_ignores_the_image_has_areas_of_one_half(maker: Any) -> None:
    session = BundleSession.load(maker.bundle(maker.root / "bundle", gain=0.0))
    image = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)

    assert perturbation_aucs(session, image, np.eye(4), 1) == pytest.approx((0.5, 0.5))


def three_layer_network() -> bytes:
    """Return a network of three products; the gradient uses the transposed weights of the last one."""
    random = np.random.default_rng(0)
    shapes = {"w1": (6, 5), "b1": (5,), "w2": (5, 4), "w3": (4, 1), "other": (4,)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["b"]),
        helper.make_node("Add", ["b", "other"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["logit"]),
        helper.make_node("MatMul", ["logit", "w3"], ["gradient"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    x, logit = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("x", "logit"))
    content: bytes = helper.make_model(helper.make_graph(nodes, "three", [x], [logit], constants)).SerializeToString()
    return content


def tensors(network: bytes) -> dict[str, Any]:
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(network).graph.initializer
    }


@pytest.mark.parametrize(
    ("fraction", "layers", "changed"), [(0.0, 1, {"w3"}), (0.5, 2, {"w2", "w3"}), (1.0, 3, {"w1", "b1", "w2", "w3"})]
)
def test_weights_are_shuffled_within_each_tensor_from_the_logit_backwards(
    fraction: float, layers: int, changed: set[str]
) -> None:
    network = three_layer_network()

    shuffled, count = shuffle_weights(network, fraction, np.random.default_rng(3))

    before, after = tensors(network), tensors(shuffled)
    assert count == layers
    assert {name for name in before if not np.array_equal(before[name], after[name])} == changed
    for name in before:
        assert np.array_equal(np.sort(before[name], axis=None), np.sort(after[name], axis=None))


def test_transposed_copies_are_shuffled_alike_and_other_outputs_are_untouched() -> None:
    weights = np.arange(4, dtype=np.float32)[:, None]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logit"]),
        helper.make_node("MatMul", ["logit", "w_t"], ["gradient"]),
        helper.make_node("MatMul", ["x", "classifier"], ["input_classes"]),
    ]
    arrays = {"w": weights, "w_t": weights.T, "classifier": np.arange(8, dtype=np.float32).reshape(4, 2)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    logit = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in arrays.items()]
    network = helper.make_model(helper.make_graph(nodes, "copy", [x], [logit], constants)).SerializeToString()

    shuffled, count = shuffle_weights(network, 0.0, np.random.default_rng(3))

    after = tensors(shuffled)
    assert count == 1
    assert not np.array_equal(after["w"], weights)
    np.testing.assert_array_equal(after["w_t"], after["w"].T)
    np.testing.assert_array_equal(after["classifier"], arrays["classifier"])


def test_network_without_weights_cannot_be_randomized(maker: Any) -> None:
    network = (maker.bundle(maker.root / "bundle") / "network.onnx").read_bytes()

    with pytest.raises(UsageError, match="no layer with weights"):
        shuffle_weights(network, 1.0, np.random.default_rng(0))


def test_rank_correlation_is_spearmans() -> None:
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 x 2 / (4 x 15) = 0.8."""
    assert rank_correlation(np.array([[1, 2], [3, 4]]), np.array([[10, 20], [40, 30]])) == pytest.approx(0.8)
    assert np.isnan(rank_correlation(np.eye(2), np.ones((2, 2))))
