"""The comparison with 8 bits: what is quantised, that the result still scores, and what the table says of it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pneumoscope.bundle.card import read_bundle
from pneumoscope.runs.run_folder import find_bundle

_PATH = Path(__file__).parents[2] / "benchmarks" / "eight_bit.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_eight_bit", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = benchmark
_SPEC.loader.exec_module(benchmark)
METHODS, Row, behind_the_logit = benchmark.METHODS, benchmark.Row, benchmark.behind_the_logit
compare, quantised, table = benchmark.compare, benchmark.quantised, benchmark.table

SIDE = 112
RANDOM = np.random.default_rng(0)


def convolution(name, taken, given, channels=(1, 4)):
    weight = RANDOM.normal(size=(channels[1], channels[0], 3, 3)).astype(np.float32) * 0.2
    return helper.make_node("Conv", [taken, f"{name}.w"], [given], name=name), numpy_helper.from_array(
        weight, f"{name}.w"
    )


@pytest.fixture(scope="module")
def content():
    """Grey to [-1, 1], two convolutions to a logit, and a third one beside them."""
    first, a = convolution("first", "grey", "a")
    second, b = convolution("second", "b", "c", (4, 1))
    aside, c = convolution("aside", "grey", "z")
    axes = numpy_helper.from_array(np.array([1]), "one")
    scale, half = (
        numpy_helper.from_array(np.array(value, np.float32), name) for value, name in ((1 / 128, "s"), (1, "h"))
    )
    places = numpy_helper.from_array(np.array([1, 2, 3]), "places")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float", "one"], ["deep"]),
        helper.make_node("Mul", ["deep", "s"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "h"], ["grey"]),
        first, helper.make_node("Relu", ["a"], ["b"]), second, aside,
        helper.make_node("ReduceMean", ["c", "places"], ["logit"], keepdims=0),
        helper.make_node("ReduceMean", ["z", "places"], ["distance"], keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("logit", "distance")],
        [a, b, c, axes, scale, half, places],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def test_only_what_the_logit_hangs_on_is_quantised(content):
    assert sorted(behind_the_logit(onnx.load_from_string(content))) == ["first", "second"]
    shipped = onnx.load(find_bundle() / "network.onnx")
    found = behind_the_logit(shipped)
    assert 40 < len(found) < sum(node.op_type == "Conv" for node in shipped.graph.node)


@pytest.mark.parametrize("method", METHODS)
def test_in_8_bits_it_scores_almost_as_before(content, method):
    images = RANDOM.integers(0, 256, (24, SIDE, SIDE), dtype=np.uint8) // RANDOM.integers(
        1, 8, (24, 1, 1), dtype=np.uint8
    )
    small = quantised(content, images, METHODS[method])
    kinds = {node.op_type for node in onnx.load_from_string(small).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds

    card, _ = read_bundle(find_bundle())
    labels = np.arange(24) % 2 == 0
    whole, other = compare({"32 bits": content, "8 bits": small}, card, images, labels, rounds=1)

    assert whole.faster == 1
    assert whole.largest_change == 0
    assert 0 < other.largest_change < 0.05
    assert other.auroc == pytest.approx(whole.auroc, abs=0.1)


def test_it_ships_only_where_it_is_quicker_and_loses_nothing():
    card, _ = read_bundle(find_bundle())
    rows = [
        Row("32 bits", 10, 1.0, 0.99, 0.95, 0), Row("good", 3, 1.5, 0.988, 0.948, 0.1), Row("slow", 3, 1.3, 0.99, 0.95, 0.1),
        Row("worse", 3, 2.0, 0.99, 0.946, 0.1), Row("lower", 3, 2.0, 0.986, 0.95, 0.1),
    ]  # fmt: skip
    ships = {
        line.split(" | ")[0]: line.split(" | ")[-1]
        for line in table(rows, card, 9, 9, "").splitlines()
        if " | " in line
    }
    assert [ships[f"| {row.name}"] for row in rows] == ["as it is |", "yes |", "no |", "no |", "no |"]
