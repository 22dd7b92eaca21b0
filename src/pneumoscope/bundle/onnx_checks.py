"""What a network file may hold, looked at before anything runs it: a bundle can come from a stranger.

ONNX Runtime would read weights from other files on this disk, run operators of libraries that the file names, and loop for
as long as the file says. Nothing that this package exports needs any of it. The file is walked through in its wire format
(protocol buffers), which takes no library; weights are stepped over, not read.
"""

from __future__ import annotations

from collections.abc import Iterator

from pneumoscope.core.errors import BundleError

__all__ = ["check_onnx"]

MAX_BYTES = 2 * 1024**3
MAX_NODES = 20_000  # the largest of timm's networks has some thousands
_DOMAINS = {b"", b"ai.onnx"}
# Whose bodies are graphs of their own: they decide what runs, and how often.
_CONTROL = {b"If", b"Loop", b"Scan", b"SequenceMap"}
# Numbers of fields in onnx.proto.
_GRAPH, _VERSIONS, _FUNCTIONS = 7, 8, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_TENSOR_VALUE = 5
_EXTERNAL, _LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_onnx(content: bytes, name: str) -> None:
    """Raise where a network file holds more than a plain network.

    Args:
        content: the file.
        name: of the bundle, for the error.
    Raises:
        BundleError: it is too large or no ONNX file; it has too many nodes, operators from elsewhere, functions or control
            flow; or its weights lie in another file.
    """
    if len(content) > MAX_BYTES:
        raise _refused(name, f"it has {len(content):,} bytes, and {MAX_BYTES:,} are the most")
    nodes, graphs, versions = 0, 0, 0
    try:
        for number, value in _fields(memoryview(content)):
            if number == _FUNCTIONS:
                raise _refused(name, "it defines functions of its own")
            versions += number == _VERSIONS
            if number != _GRAPH:
                continue
            graphs += 1
            for inner, part in _fields(_as_bytes(value)):
                if inner == _NODE:
                    nodes += 1
                    _refuse_node(_as_bytes(part), name)
                elif inner == _INITIALIZER:
                    _refuse_external(_as_bytes(part), name)
                elif inner == _SPARSE:
                    raise _refused(name, "it has sparse weights")
    except (IndexError, ValueError) as error:
        raise _refused(name, f"it is no ONNX file ({error})") from error
    if graphs != 1 or not nodes or not versions:
        raise _refused(name, f"it has {graphs} graphs, {nodes} nodes, and {versions} versions of operators")
    if nodes > MAX_NODES:
        raise _refused(name, f"it has {nodes:,} nodes, and {MAX_NODES:,} are the most")


def _refuse_node(node: memoryview, name: str) -> None:
    operator, domain = b"", b""
    for number, value in _fields(node):
        if number == _OPERATOR:
            operator = bytes(_as_bytes(value))
        elif number == _DOMAIN:
            domain = bytes(_as_bytes(value))
        elif number == _ATTRIBUTE:
            for inner, part in _fields(_as_bytes(value)):
                if inner == _TENSOR_VALUE:
                    _refuse_external(_as_bytes(part), name)
    if domain not in _DOMAINS:
        raise _refused(name, f"operator {_text(operator)!r} is of {_text(domain)!r}, not of ONNX itself")
    if operator in _CONTROL:
        raise _refused(name, f"operator {_text(operator)!r} decides what runs")


def _refuse_external(tensor: memoryview, name: str) -> None:
    for number, value in _fields(tensor):
        if number == _EXTERNAL or (number == _LOCATION and value):
            raise _refused(name, "weights of it lie in another file")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of the fields of a message.

    Raises:
        IndexError, ValueError: it is none.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key >= 2**32:  # whoever runs the file would read the lower 32 bits, and so another field
            raise ValueError(f"a field's number without meaning at byte {place}")
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value: int | memoryview
            value, place = _varint(message, place)
        else:
            if kind == _BYTES:
                length, place = _varint(message, place)
            elif kind in {_FIXED64, _FIXED32}:
                length = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"wire type {kind} at byte {place}")
            if place + length > len(message):
                raise ValueError(f"cut short at byte {place}")
            value, place = message[place : place + length], place + length
        yield number, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without end at byte {place}")


def _as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _text(words: bytes) -> str:
    return words.decode("ascii", "backslashreplace")


def _refused(name: str, why: str) -> BundleError:
    return BundleError(
        f"the network of bundle {name!r} is refused: {why}", hint="Export it again, or get it from whom you trust"
    )
