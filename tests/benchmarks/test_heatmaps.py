"""The benchmark of heatmaps measures what it says: on networks small enough to know the answer."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pneumoscope.core.errors import UsageError
from pneumoscope.inference import BundleSession

_PATH = Path(__file__).parents[2] / "benchmarks" / "heatmaps.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_heatmaps", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = benchmark  # dataclasses look their module up there
_SPEC.loader.exec_module(benchmark)


def test_a_random_map_has_the_spectrum_and_the_mean_of_the_images_own():
    own = np.random.default_rng(1).normal(2, 1, (7, 7)) + np.linspace(0, 5, 7)

    found = benchmark.same_spectrum(own, np.random.default_rng(2))

    np.testing.assert_allclose(abs(np.fft.fft2(found)), abs(np.fft.fft2(own)), rtol=1e-9)
    assert found.mean() == pytest.approx(own.mean())
    assert abs(found - own).max() > 1


def test_a_map_that_points_at_what_counts_beats_its_opposite(maker):
    """The network takes the mean grey: dark pixels are what speaks for normal, and blurring fills them."""
    session = BundleSession.load(maker.bundle(maker.root / "bundle", gain=0.05))
    image = np.full((16, 16), 100, np.uint8)
    image[4:8, 4:8] = 0
    here = np.zeros((4, 4))
    here[1, 1] = -1

    deletion, insertion = benchmark.areas(session, image, here, -1)
    worst_deletion, worst_insertion = benchmark.areas(session, image, -here, -1)

    assert deletion < worst_deletion
    assert insertion > worst_insertion
    # Taking everything away and giving everything back end at the same two images.
    assert 0.5 < deletion < insertion < 1


def test_a_network_that_knows_nothing_has_areas_of_one_half(maker):
    session = BundleSession.load(maker.bundle(maker.root / "bundle", gain=0.0))
    image = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)

    assert benchmark.areas(session, image, np.eye(4), 1) == pytest.approx((0.5, 0.5))


def three_layers():
    """Two products and a last one whose weights the gradient takes too, transposed."""
    random = np.random.default_rng(0)
    tensors = {"w1": (6, 5), "b1": (5,), "w2": (5, 4), "w3": (4, 1), "other": (4,)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["b"]),
        helper.make_node("Add", ["b", "other"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["logit"]),
        helper.make_node("MatMul", ["logit", "w3"], ["gradient"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in tensors.items()
    ]
    x, logit = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("x", "logit"))
    return helper.make_model(helper.make_graph(nodes, "three", [x], [logit], constants)).SerializeToString()


@pytest.mark.parametrize(
    ("share", "layers", "changed"), [(0.0, 1, {"w3"}), (0.5, 2, {"w2", "w3"}), (1.0, 3, {"w1", "b1", "w2", "w3"})]
)
def test_weights_are_shuffled_within_each_tensor_from_the_logit_on(share, layers, changed):
    before = three_layers()
    content, count = benchmark.shuffled(before, share, np.random.default_rng(3))

    assert count == layers
    old, new = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(c).graph.initializer}
        for c in (before, content)
    )
    assert {name for name in old if not np.array_equal(old[name], new[name])} == changed
    for name in old:
        assert np.array_equal(np.sort(old[name], axis=None), np.sort(new[name], axis=None))


def test_a_transposed_copy_is_shuffled_alike_and_what_the_logit_does_not_hang_on_is_left():
    weights = np.arange(4, dtype=np.float32)[:, None]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logit"]),
        helper.make_node("MatMul", ["logit", "w_t"], ["gradient"]),
        helper.make_node("MatMul", ["x", "gate"], ["input_classes"]),
    ]
    arrays = {"w": weights, "w_t": weights.T, "gate": np.arange(8, dtype=np.float32).reshape(4, 2)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    logit = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in arrays.items()]
    before = helper.make_model(helper.make_graph(nodes, "copy", [x], [logit], constants)).SerializeToString()

    content, count = benchmark.shuffled(before, 0.0, np.random.default_rng(3))

    new = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(content).graph.initializer}
    assert count == 1
    assert not np.array_equal(new["w"], weights)
    np.testing.assert_array_equal(new["w_t"], new["w"].T)
    np.testing.assert_array_equal(new["gate"], arrays["gate"])


def test_a_network_without_weights_is_refused(maker):
    network = (maker.bundle(maker.root / "bundle") / "network.onnx").read_bytes()

    with pytest.raises(UsageError, match="no layer with weights"):
        benchmark.shuffled(network, 1.0, np.random.default_rng(0))


def test_likeness_is_spearmans():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 x 2 / (4 x 15) = 0.8."""
    assert benchmark.likeness(np.array([[1, 2], [3, 4]]), np.array([[10, 20], [40, 30]])) == pytest.approx(0.8)
    assert np.isnan(benchmark.likeness(np.eye(2), np.ones((2, 2))))
    assert benchmark._mean([[0.2, np.nan], [0.4, np.nan]])[0] == pytest.approx(0.3)
