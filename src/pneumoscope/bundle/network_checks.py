"""Check a network file's structure before loading it, and provide the self-test image for afterwards.

A bundle may come from an untrusted source. ONNX Runtime would read weights from other files, run operators of libraries named
in the file, and loop as long as the file specifies; exported networks need none of these. `check_onnx` parses the wire format
(protocol buffers) directly, without a library, and skips weights instead of reading them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import BundleError

__all__ = ["MAX_BYTES", "SELF_TEST_TOLERANCE", "check_onnx", "message_fields", "self_test_image"]

MAX_BYTES = 2 * 1024**3
MAX_NODES = 20_000  # the largest timm networks have a few thousand

# Tolerance of the self-test logit, relative to its magnitude if that is above 1. Processors differ by about 1e-5.
SELF_TEST_TOLERANCE = 1e-3

_STANDARD_DOMAINS = {b"", b"ai.onnx"}
# Operators with subgraphs.
_CONTROL_FLOW = {b"If", b"Loop", b"Scan", b"SequenceMap"}
# Field numbers of these messages in onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto.
_MODEL_GRAPH, _MODEL_OPSET_IMPORT, _MODEL_FUNCTIONS = 7, 8, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE_INITIALIZER = 1, 5, 15
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR = 5
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
# Wire types of protocol buffers.
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 63


def check_onnx(content: bytes, name: str) -> None:
    """Raise if a network file contains anything other than a plain feed-forward network.

    Args:
        content: Content of the file.
        name: Name of the bundle for the error message.

    Raises:
        BundleError: The file is too large or not ONNX; it contains too many nodes, operators of other domains, functions,
            sparse weights or control flow; or its weights are in another file.
    """
    if len(content) > MAX_BYTES:
        raise _unsafe(name, f"it has {len(content):,} bytes; at most {MAX_BYTES:,} are allowed")
    nodes, graphs, opsets = 0, 0, 0
    try:
        for number, value in message_fields(memoryview(content)):
            if number == _MODEL_FUNCTIONS:
                raise _unsafe(name, "it defines functions")
            opsets += number == _MODEL_OPSET_IMPORT
            if number != _MODEL_GRAPH:
                continue
            graphs += 1
            for inner, part in message_fields(_message(value)):
                if inner == _GRAPH_NODE:
                    nodes += 1
                    _check_node(_message(part), name)
                elif inner == _GRAPH_INITIALIZER:
                    _check_tensor(_message(part), name)
                elif inner == _GRAPH_SPARSE_INITIALIZER:
                    raise _unsafe(name, "it has sparse weights")
    except (IndexError, ValueError) as error:
        raise _unsafe(name, f"it is not an ONNX file ({error})") from error
    if graphs != 1 or not nodes or not opsets:
        raise _unsafe(name, f"it has {graphs} graphs, {nodes} nodes and {opsets} operator sets")
    if nodes > MAX_NODES:
        raise _unsafe(name, f"it has {nodes:,} nodes; at most {MAX_NODES:,} are allowed")


def self_test_image(size: int) -> npt.NDArray[np.uint8]:
    """Return the image that every bundle scores when loaded; the expected logit is on the card.

    The test detects processors and libraries that compute different results. The image, a gradient with a checkerboard and
    rings, uses integer arithmetic and is therefore identical on all machines.

    Args:
        size: Side in pixels.

    Returns:
        Gray levels, uint8, shape (1, size, size).
    """
    y, x = np.mgrid[:size, :size].astype(np.int64)
    gradient = 128 * (x + y) // (2 * size)
    checkerboard = 32 * ((8 * x // size + 8 * y // size) % 2)
    rings = 64 * (((2 * x - size) ** 2 + (2 * y - size) ** 2) * 6 // (2 * size * size) % 2)
    image: npt.NDArray[np.uint8] = (gradient + checkerboard + rings).astype(np.uint8)[None]
    return image


def _check_node(node: memoryview, name: str) -> None:
    operator, domain = b"", b""
    for number, value in message_fields(node):
        if number == _NODE_OP_TYPE:
            operator = bytes(_message(value))
        elif number == _NODE_DOMAIN:
            domain = bytes(_message(value))
        elif number == _NODE_ATTRIBUTE:
            for inner, part in message_fields(_message(value)):
                if inner == _ATTRIBUTE_TENSOR:
                    _check_tensor(_message(part), name)
    if domain not in _STANDARD_DOMAINS:
        raise _unsafe(name, f"operator {_text(operator)!r} belongs to the domain {_text(domain)!r}, not to ONNX")
    if operator in _CONTROL_FLOW:
        raise _unsafe(name, f"it has the control flow operator {_text(operator)!r}")


def _check_tensor(tensor: memoryview, name: str) -> None:
    for number, value in message_fields(tensor):
        if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value):
            raise _unsafe(name, "its weights are in another file")


def message_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field of a Protocol Buffers message.

    Raises:
        IndexError, ValueError: The bytes are not a valid message.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key >= 2**32:  # ONNX Runtime reads only the lower 32 bits and would see a different field
            raise ValueError(f"invalid field number at byte {position}")
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value: int | memoryview
            value, position = _varint(message, position)
        else:
            if wire_type == _LENGTH_DELIMITED:
                length, position = _varint(message, position)
            elif wire_type in {_FIXED64, _FIXED32}:
                length = 8 if wire_type == _FIXED64 else 4
            else:
                raise ValueError(f"invalid wire type {wire_type} at byte {position}")
            if position + length > len(message):
                raise ValueError(f"truncated at byte {position}")
            value, position = message[position : position + length], position + length
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the variable-length integer at a position and the position after it."""
    value, shift = 0, 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > _MAX_VARINT_BITS:
            raise ValueError(f"invalid integer at byte {position}")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer instead of a message")
    return value


def _text(content: bytes) -> str:
    return content.decode("ascii", "backslashreplace")


def _unsafe(name: str, reason: str) -> BundleError:
    return BundleError(
        f"the network of bundle {name!r} is unsafe: {reason}",
        hint="Export it again, or obtain it from a trusted source",
    )
