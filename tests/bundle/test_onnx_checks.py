"""A network file of a stranger is looked at before it is run; second opinions by the onnx library."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.conftest import mean_grey_network

from pneumoscope.bundle import onnx_checks as module
from pneumoscope.bundle.card import read_bundle
from pneumoscope.bundle.onnx_checks import check_onnx
from pneumoscope.core.errors import BundleError

PLAIN = mean_grey_network(0.05, screened=True)


def altered(change):
    model = onnx.load_from_string(PLAIN)
    change(model)
    return model.SerializeToString()


def of_a_library(model):
    model.graph.node[3].domain = "com.example"


def of_the_runtime(model):
    model.graph.node[3].domain = "com.microsoft"


def a_loop(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))


def a_choice(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["image"], ["x"], then_branch=body, else_branch=body))


def a_function(model):
    model.functions.append(helper.make_function("", "Twice", ["x"], ["y"], [], []))


def weights_elsewhere(model):
    tensor = model.graph.initializer[2]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def weights_named_elsewhere(model):
    """Without saying that they are there."""
    model.graph.initializer[2].external_data.add(key="location", value="weights.bin")


def a_constant_elsewhere(model):
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


def sparse(model):
    model.graph.sparse_initializer.add()


def without_nodes(model):
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (of_a_library, r"operator 'Unsqueeze' is of 'com\.example', not of ONNX itself"),
        (of_the_runtime, r"is of 'com\.microsoft'"),
        (a_loop, "operator 'Loop' decides what runs"),
        (a_choice, "operator 'If' decides what runs"),
        (a_function, "it defines functions of its own"),
        (weights_elsewhere, "weights of it lie in another file"),
        (weights_named_elsewhere, "weights of it lie in another file"),
        (a_constant_elsewhere, "weights of it lie in another file"),
        (sparse, "it has sparse weights"),
        (without_nodes, "it has 1 graphs, 0 nodes, and 1 versions of operators"),
    ],
)
def test_what_no_network_of_ours_holds_is_refused(change, why):
    check_onnx(PLAIN, "grey")
    with pytest.raises(BundleError, match=rf"network of bundle 'grey' is refused: .*{why}"):
        check_onnx(altered(change), "grey")


def test_limits(monkeypatch):
    nodes = len(onnx.load_from_string(PLAIN).graph.node)
    monkeypatch.setattr(module, "MAX_NODES", nodes)
    check_onnx(PLAIN, "grey")
    monkeypatch.setattr(module, "MAX_NODES", nodes - 1)
    with pytest.raises(BundleError, match=rf"it has {nodes} nodes, and {nodes - 1} are the most"):
        check_onnx(PLAIN, "grey")
    monkeypatch.setattr(module, "MAX_BYTES", len(PLAIN) - 1)
    with pytest.raises(BundleError, match=r"bytes, and .* are the most"):
        check_onnx(PLAIN, "grey")


def test_fields_are_those_that_the_library_reads():
    model = onnx.load_from_string(PLAIN)
    (graph,) = [value for number, value in module._fields(memoryview(PLAIN)) if number == 7]
    nodes = [value for number, value in module._fields(graph) if number == 1]
    weights = [value for number, value in module._fields(graph) if number == 5]
    assert [bytes(node) for node in nodes] == [node.SerializeToString() for node in model.graph.node]
    assert [bytes(tensor) for tensor in weights] == [tensor.SerializeToString() for tensor in model.graph.initializer]


@given(st.binary(max_size=60))
def test_bytes_that_are_no_network_are_refused_and_nothing_else_happens(content):
    with pytest.raises(BundleError, match="is refused"):
        check_onnx(content, "grey")


@given(st.integers(0, len(PLAIN) - 1))
def test_a_file_cut_short_anywhere_is_refused(length):
    with pytest.raises(BundleError, match="is refused"):
        check_onnx(PLAIN[:length], "grey")


def test_a_bundle_with_such_a_network_is_refused_though_its_card_says_so(maker, monkeypatch):
    monkeypatch.setattr("tests.conftest.mean_grey_network", lambda gain, screened: altered(of_a_library))
    folder = maker.bundle(maker.root / "bundle")
    with pytest.raises(BundleError, match="not of ONNX itself"):
        read_bundle(folder)


def test_a_fields_number_beyond_32_bits_is_refused():
    """Whoever runs the file drops the bits above: the domain of a node, hidden so, would be taken for another field here."""
    domain = b"com.microsoft"
    key = (7 << 3 | 2) + 2**32
    coded = b""
    while key >= 0x80:
        coded, key = coded + bytes([key & 0x7F | 0x80]), key >> 7
    node = onnx.load_from_string(PLAIN).graph.node[0].SerializeToString() + coded + bytes([key, len(domain)]) + domain
    with pytest.raises(BundleError, match="number without meaning"):
        check_onnx(_with_node(node), "sly")


def _with_node(node):
    """A file whose only content is a graph of this node."""

    def field(number, content):
        size, length = b"", len(content)
        while length >= 0x80:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    return field(7, field(1, node))
