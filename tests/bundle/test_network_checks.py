"""Checks of untrusted network files, verified with the onnx library; the self-test of a loaded bundle."""

import hashlib
import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.conftest import mean_gray_network

from pneumoscope.bundle import network_checks
from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.network_checks import check_onnx, self_test_image
from pneumoscope.core.errors import BundleError
from pneumoscope.inference.session import BundleSession

PLAIN = mean_gray_network(0.05, screened=True)


def altered(change):
    model = onnx.load_from_string(PLAIN)
    change(model)
    return model.SerializeToString()


def custom_domain(model):
    model.graph.node[3].domain = "com.example"


def onnxruntime_domain(model):
    model.graph.node[3].domain = "com.microsoft"


def loop_operator(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))


def if_operator(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["image"], ["x"], then_branch=body, else_branch=body))


def model_function(model):
    model.functions.append(helper.make_function("", "Twice", ["x"], ["y"], [], []))


def external_weights(model):
    tensor = model.graph.initializer[2]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_weights_without_location(model):
    """Name an external file, with the location still set to the default."""
    model.graph.initializer[2].external_data.add(key="location", value="weights.bin")


def external_constant(model):
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


def sparse_weights(model):
    model.graph.sparse_initializer.add()


def no_nodes(model):
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (custom_domain, r"operator 'Unsqueeze' belongs to the domain 'com\.example', not to ONNX"),
        (onnxruntime_domain, r"belongs to the domain 'com\.microsoft'"),
        (loop_operator, "it has the control flow operator 'Loop'"),
        (if_operator, "it has the control flow operator 'If'"),
        (model_function, "it defines functions"),
        (external_weights, "its weights are in another file"),
        (external_weights_without_location, "its weights are in another file"),
        (external_constant, "its weights are in another file"),
        (sparse_weights, "it has sparse weights"),
        (no_nodes, "it has 1 graphs, 0 nodes and 1 operator sets"),
    ],
)
def test_unsafe_network_is_rejected(change, reason):
    check_onnx(PLAIN, "gray")
    with pytest.raises(BundleError, match=rf"network of bundle 'gray' is unsafe: .*{reason}"):
        check_onnx(altered(change), "gray")


def test_number_of_nodes_and_bytes_is_limited(monkeypatch):
    nodes = len(onnx.load_from_string(PLAIN).graph.node)
    monkeypatch.setattr(network_checks, "MAX_NODES", nodes)
    check_onnx(PLAIN, "gray")
    monkeypatch.setattr(network_checks, "MAX_NODES", nodes - 1)
    with pytest.raises(BundleError, match=rf"it has {nodes} nodes; at most {nodes - 1} are allowed"):
        check_onnx(PLAIN, "gray")
    monkeypatch.setattr(network_checks, "MAX_BYTES", len(PLAIN) - 1)
    with pytest.raises(BundleError, match=r"bytes; at most .* are allowed"):
        check_onnx(PLAIN, "gray")


def test_fields_match_the_onnx_library():
    model = onnx.load_from_string(PLAIN)
    (graph,) = [value for number, value in network_checks.message_fields(memoryview(PLAIN)) if number == 7]
    nodes = [value for number, value in network_checks.message_fields(graph) if number == 1]
    weights = [value for number, value in network_checks.message_fields(graph) if number == 5]
    assert [bytes(node) for node in nodes] == [node.SerializeToString() for node in model.graph.node]
    assert [bytes(tensor) for tensor in weights] == [tensor.SerializeToString() for tensor in model.graph.initializer]


@given(st.binary(max_size=60))
def test_random_bytes_are_rejected(content):
    with pytest.raises(BundleError, match="is unsafe"):
        check_onnx(content, "gray")


@given(st.integers(0, len(PLAIN) - 1))
def test_truncated_file_is_rejected(length):
    with pytest.raises(BundleError, match="is unsafe"):
        check_onnx(PLAIN[:length], "gray")


def test_unsafe_network_is_rejected_even_if_its_card_has_the_hash(maker, monkeypatch):
    monkeypatch.setattr("tests.conftest.mean_gray_network", lambda *_, **__: altered(custom_domain))
    folder = maker.bundle(maker.root / "bundle")
    with pytest.raises(BundleError, match="not to ONNX"):
        read_bundle(folder)


def test_field_number_beyond_32_bits_is_rejected():
    """ONNX Runtime drops the upper bits, so that the domain of a node could hide in a field that the check ignores."""
    domain = b"com.microsoft"
    key = (7 << 3 | 2) + 2**32
    coded = b""
    while key >= 0x80:
        coded, key = coded + bytes([key & 0x7F | 0x80]), key >> 7
    node = onnx.load_from_string(PLAIN).graph.node[0].SerializeToString() + coded + bytes([key, len(domain)]) + domain
    with pytest.raises(BundleError, match="invalid field number"):
        check_onnx(_with_node(node), "gray")


def _with_node(node):
    """Return a file with a graph of this node only."""

    def field(number, content):
        size, length = b"", len(content)
        while length >= 0x80:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    return field(7, field(1, node))


@pytest.mark.parametrize("size", [16, 95, 224, 1024])
def test_self_test_image_uses_the_gray_range_and_has_no_symmetry(size):
    image = self_test_image(size)
    assert (image.shape, image.dtype) == ((1, size, size), np.uint8)
    assert image.min() < 40
    assert 180 < image.max() < 224
    # A runtime that rotates or mirrors its input must change the logit.
    transformed = [np.rot90(image[0], turns) for turns in range(1, 4)] + [image[0][::-1], image[0][:, ::-1]]
    assert all((other != image[0]).mean() > 0.2 for other in transformed)


def test_self_test_image_never_changes():
    """Every card states the logit of this image."""
    assert hashlib.sha256(self_test_image(224).tobytes()).hexdigest()[:16] == "a8cce4fa9befa979"


@pytest.mark.parametrize("change", [0.002, -0.002, float("nan")])
def test_bundle_with_another_self_test_logit_is_rejected(maker, change):
    bundle = maker.bundle(maker.root / "bundle")
    logit = BundleSession.load(bundle).card.self_test_logit
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps({**card, "self_test_logit": logit + change * max(1, abs(logit))}))
    with pytest.raises(BundleError, match=r"logit .*expected.*onnxruntime|malformed"):
        BundleSession.load(bundle)
