"""The process that decodes untrusted bytes for `sandbox`: it limits itself, then answers one request after the other.

It imports what decoding needs and nothing else. Messages are a length (4 bytes, little-endian), a MessagePack header of that
length, and raw bytes whose number follows from the header. A message asks for one image or several; each has a reply of its own.
Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import resource
import signal
import socket
import struct
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction import Rejection
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph
from pneumoscope.imaging.preprocess import Preprocessing, preprocess_image

__all__ = ["BUFFER", "LENGTH", "LONGEST_HEADER", "READY", "Failure", "Limits", "Reply", "Request", "Success", "main"]

LENGTH = struct.Struct("<I")  # of a header
BUFFER = 2**18  # bytes: some prepared images
LONGEST_HEADER = 2**16  # bytes
READY = b"R"  # sent once, when the worker takes requests

Side = Annotated[int, Meta(ge=1, le=MAX_PIXELS)]
Text = Annotated[str, Meta(max_length=4000)]


class Limits(Struct, frozen=True, kw_only=True):
    """What one image may cost.

    Attributes:
        memory: bytes of address space of a worker. The largest radiograph that is accepted (75 million pixels of 16 bits) needs
            about 1.4 GiB. Not enforced on macOS, whose kernel ignores RLIMIT_AS.
        cpu_seconds: processor time, whole seconds.
        wall_seconds: time until the answer; longer than `cpu_seconds`, since other processes use the cores too.
        images: that a worker decodes before it is replaced, so that leaks of libraries stay small.
    """

    memory: int = 2 * 2**30
    cpu_seconds: int = 30
    wall_seconds: float = 90.0
    images: int = 5_000


class Request(Struct, frozen=True):
    """One image to decode.

    Attributes:
        number: that the reply repeats.
        path: of the file, as bytes; empty where the file's bytes follow the header.
        size: of the bytes that follow.
        preprocessing: has the prepared pixels sent first, and lets a JPEG be decoded smaller; None does neither.
        pixels: whether the decoded pixels are sent.
    """

    number: int
    path: bytes
    size: int
    preprocessing: Preprocessing | None
    pixels: bool


class Success(Struct, frozen=True, tag="success"):
    """What was decoded; see `Radiograph` and `PreprocessedImage` for the fields. The pixels asked for follow."""

    number: int
    format: Annotated[str, Meta(max_length=16)]
    mode: Annotated[str, Meta(max_length=64)]
    width: Side
    height: Side
    reduced_from: tuple[Side, Side] | None
    chroma: Annotated[float, Meta(ge=0, le=255)]
    age: Annotated[float, Meta(ge=0, le=1000)] | None
    rejection: Rejection | None


class Failure(Struct, frozen=True, tag="failure"):
    """Why there are no pixels.

    Attributes:
        number: of the request.
        reason, hint: see `UnreadableImageError`.
        memory: whether the memory did not suffice; the worker is replaced then.
    """

    number: int
    reason: Text
    hint: Text
    memory: bool


Reply = Success | Failure


def main(descriptor: int, limits: str, preload: Sequence[str]) -> None:
    """Answer requests until the other end of the socket is closed.

    Args:
        descriptor: of the socket.
        limits: `Limits` as JSON.
        preload: modules to import first.
    """
    _end_with_parent()
    warnings.simplefilter("ignore")  # of decoders, which repeat what is in the file
    for module in preload:
        import_module(module)
    connection = socket.socket(fileno=descriptor)
    allowed = msgspec.json.decode(limits, type=Limits)
    _limit_resources(allowed)
    connection.sendall(READY)
    # Buffered, so that the replies to a message go together: switches between processes cost more than their bytes.
    received, sent = connection.makefile("rb", BUFFER), connection.makefile("wb", BUFFER)
    decoder = msgspec.msgpack.Decoder(list[Request])
    while length := received.read(LENGTH.size):
        requests = decoder.decode(received.read(LENGTH.unpack(length)[0]))
        contents = [received.read(request.size) for request in requests]
        for request, content in zip(requests, contents, strict=True):
            _renew_cpu_limit(allowed.cpu_seconds)
            reply, parts = _reply(request, content)
            header = msgspec.msgpack.encode(reply)
            sent.write(LENGTH.pack(len(header)) + header)
            for part in parts:
                sent.write(np.ascontiguousarray(part).data)
        sent.flush()


def _end_with_parent() -> None:
    """Have the kernel end this process when the parent is gone, whatever runs here then.

    Standard input is a pipe into which nothing is written: when its other end is closed, SIGIO arrives, which ends a process.
    PR_SET_PDEATHSIG would end it with the thread that started it.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def _limit_resources(limits: Limits) -> None:
    with contextlib.suppress(
        OSError
    ):  # no such file but on Linux: the worker goes before its parent where memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))


def _renew_cpu_limit(seconds: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard))


def _reply(request: Request, content: bytes) -> tuple[Reply, Sequence[npt.NDArray[np.uint8]]]:
    """The header of a reply, and the pixels after it."""
    try:
        return _decoded(request, content)
    except UnreadableImageError as error:
        return Failure(request.number, error.reason[:4000], error.hint[:4000], _is_of_memory(error)), ()
    except MemoryError:
        return Failure(request.number, "", "", memory=True), ()


def _decoded(request: Request, content: bytes) -> tuple[Reply, Sequence[npt.NDArray[np.uint8]]]:
    source = Path(os.fsdecode(request.path)) if request.path else content
    radiograph = decode(source, min_side=request.preprocessing.min_side if request.preprocessing else 0)
    parts, rejection = [], None
    if request.preprocessing:
        preprocessed = preprocess_image(radiograph, request.preprocessing)
        rejection = preprocessed.rejection
        parts.append(preprocessed.pixels)
    if request.pixels:
        parts.append(radiograph.pixels)
    return _success(request.number, radiograph, rejection), parts


def _success(number: int, radiograph: Radiograph, rejection: Rejection | None) -> Success:
    return Success(
        number,
        radiograph.format,
        radiograph.mode,
        radiograph.width,
        radiograph.height,
        radiograph.reduced_from,
        radiograph.chroma,
        radiograph.age,
        rejection,
    )


def _is_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
