"""The benchmark of 8-bit quantization: quantized layers, scores and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.benchmarks.loading import load_benchmark

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.runs.run_folder import find_bundle

benchmark = load_benchmark("eight_bit")
CALIBRATION_METHODS, Row = benchmark.CALIBRATION_METHODS, benchmark.Row

SIZE = 224


def convolution(name: str, source: str, output: str, channels: tuple[int, int] = (1, 4)) -> tuple[Any, Any]:
    """Return the node and the weights of a 3 x 3 convolution."""
    random = np.random.default_rng(len(name))
    weights = random.normal(size=(channels[1], channels[0], 3, 3)).astype(np.float32) * 0.2
    node = helper.make_node("Conv", [source, f"{name}.w"], [output], name=name)
    return node, numpy_helper.from_array(weights, f"{name}.w")


@pytest.fixture(scope="module")
def network() -> bytes:
    """Two convolutions to a logit, and one more to another output."""
    first, a = convolution("first", "gray", "a")
    second, b = convolution("second", "b", "c", (4, 1))
    separate, c = convolution("separate", "gray", "z")
    channel_axis = numpy_helper.from_array(np.array([1]), "channel_axis")
    scale, offset = (
        numpy_helper.from_array(np.array(value, np.float32), name)
        for value, name in ((1 / 128, "scale"), (1, "offset"))
    )
    axes = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float", "channel_axis"], ["channels"]),
        helper.make_node("Mul", ["channels", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], ["gray"]),
        first, helper.make_node("Relu", ["a"], ["b"]), second, separate,
        helper.make_node("ReduceMean", ["c", "axes"], ["logit"], keepdims=0),
        helper.make_node("ReduceMean", ["z", "axes"], ["ood_distance"], keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("logit", "ood_distance")],
        [a, b, c, channel_axis, scale, offset, axes],
    )  # fmt: skip
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    return content


def test_only_convolutions_of_the_logit_are_quantized(network: bytes) -> None:
    assert sorted(benchmark.convolutions_of_logit(onnx.load_from_string(network))) == ["first", "second"]
    shipped = onnx.load(find_bundle() / "network.onnx")
    names = benchmark.convolutions_of_logit(shipped)
    assert 40 < len(names) < sum(node.op_type == "Conv" for node in shipped.graph.node)


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_quantized_network_scores_almost_alike(network: bytes, method: str) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (24, SIZE, SIZE), dtype=np.uint8)
    images = noise // random.integers(1, 8, (24, 1, 1), dtype=np.uint8)
    quantized = benchmark.quantize(network, images, CALIBRATION_METHODS[method])
    operators = {node.op_type for node in onnx.load_from_string(quantized).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators

    card, _ = read_bundle(find_bundle())
    labels = np.arange(24) % 2 == 0
    reference, other = benchmark.compare({"32 bits": network, "8 bits": quantized}, card, images, labels, rounds=1)

    assert reference.speedup == 1
    assert reference.max_change == 0
    assert 0 < other.max_change < 0.05
    assert other.auroc == pytest.approx(reference.auroc, abs=0.1)


def test_goal_requires_speed_and_accuracy() -> None:
    card, _ = read_bundle(find_bundle())
    rows = [
        Row("32 bits", 10, 1.0, 0.99, 0.95, 0), Row("good", 3, 1.5, 0.988, 0.948, 0.1), Row("slow", 3, 1.3, 0.99, 0.95, 0.1),
        Row("inaccurate", 3, 2.0, 0.99, 0.946, 0.1), Row("low AUROC", 3, 2.0, 0.986, 0.95, 0.1),
    ]  # fmt: skip
    verdicts = {
        line.split(" | ")[0]: line.split(" | ")[-1]
        for line in benchmark.to_markdown(rows, card, 9, 9, "").splitlines()
        if " | " in line
    }
    assert [verdicts[f"| {row.name}"] for row in rows] == ["reference |", "yes |", "no |", "no |", "no |"]
