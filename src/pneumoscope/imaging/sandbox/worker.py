"""Decode untrusted files in a worker process: set resource limits, then reply to requests until the parent exits.

The module imports only what decoding needs. A message is a length (4 bytes, little-endian), a MessagePack header of that
length, and raw bytes whose number is given by the header. A message contains one or more requests; each gets a separate reply.
Pickle is not used.
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
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import PatientAge, Rejection
from pneumoscope.core.prediction_codes import WarningCode
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import MAX_PIXELS, Acquisition, DicomPart
from pneumoscope.imaging.pixel_values import PixelDescription
from pneumoscope.imaging.preprocess import Preprocessing, preprocess_image

__all__ = [
    "BUFFER_BYTES",
    "LENGTH",
    "MAX_HEADER_BYTES",
    "READY",
    "DecodeFailure",
    "DecodeSuccess",
    "Limits",
    "PartRequest",
    "PartSuccess",
    "Reply",
    "Request",
    "main",
]

LENGTH = struct.Struct("<I")  # prefix of a header
BUFFER_BYTES = 2**18  # a few preprocessed images
MAX_HEADER_BYTES = 2**16
READY = b"R"  # sent once, when the worker accepts requests
_MAX_TEXT = 4000  # characters
_MAX_INTEGER = 2**53  # exact in JSON
_MAX_REJECTIONS, _MAX_WARNINGS = 16, 16

Side = Annotated[int, Meta(ge=1, le=MAX_PIXELS)]


class Limits(Struct, frozen=True, kw_only=True):
    """Resource limits of decoding.

    Attributes:
        memory: Address space of a worker in bytes. The largest supported radiograph (75 million pixels of 16 bits) needs about
            1.4 GiB. Not enforced on macOS, whose kernel ignores RLIMIT_AS.
        cpu_seconds: Processor time per image in whole seconds.
        part_cpu_seconds: Processor time per part of a DICOM file in whole seconds.
        wall_seconds: Time from a message of requests to its last reply; longer than `cpu_seconds` because other processes also
            use the cores.
        images: Number of images after which a worker is replaced, which bounds memory leaks in libraries.
    """

    memory: int = 2 * 2**30
    cpu_seconds: int = 30
    part_cpu_seconds: int = 5
    wall_seconds: float = 90.0
    images: int = 5_000


class Request(Struct, frozen=True, tag="image"):
    """Request to decode one image.

    Attributes:
        number: Sequence number, repeated in the reply.
        path: Path of the file as bytes; empty if the content follows the header.
        size: Number of content bytes that follow.
        preprocessing: Parameters of the preprocessed pixels, which come first in the reply; JPEGs may then be decoded at a
            reduced size. None decodes the image at full size without preprocessing.
        pixels: Whether the reply includes the decoded pixels.
        values: Whether the reply includes the pixel values before windowing: gray level of each number, then the numbers.
    """

    number: int
    path: bytes
    size: int
    preprocessing: Preprocessing | None
    pixels: bool
    values: bool = False


class PartRequest(Struct, frozen=True, tag="part"):
    """Request to read a part of a DICOM file.

    Attributes:
        number, path, size: See `Request`.
        part: Part to read; see `imaging.dicom_parts.read_part`.
    """

    number: int
    path: bytes
    size: int
    part: DicomPart


class DecodeSuccess(Struct, frozen=True, kw_only=True, tag="success"):
    """Reply with a decoded image, followed by the requested pixels.

    Attributes:
        number: Number of the request.
        format, mode, width, height, reduced_from, chroma, age: See `Radiograph`.
        header_rejections: `Radiograph.rejections`.
        rejections: `PreprocessedImage.rejections`; empty without preprocessing.
        warnings, identity, acquisition: See `Radiograph`.
        pixel_sha256: `PreprocessedImage.pixel_sha256`; empty without preprocessing.
        description: `PixelValues.description`, if values were requested.
        n_gray_levels: Length of `PixelValues.gray_levels`; 0 without values.
    """

    number: int
    format: Annotated[str, Meta(max_length=16)]
    mode: Annotated[str, Meta(max_length=64)]
    width: Side
    height: Side
    reduced_from: tuple[Side, Side] | None
    chroma: Annotated[float, Meta(ge=0, le=255)]
    age: PatientAge | None
    header_rejections: Annotated[tuple[Rejection, ...], Meta(max_length=_MAX_REJECTIONS)]
    rejections: Annotated[tuple[Rejection, ...], Meta(max_length=_MAX_REJECTIONS)]
    warnings: Annotated[tuple[WarningCode, ...], Meta(max_length=_MAX_WARNINGS)]
    identity: Identity | None
    acquisition: Acquisition | None = None
    pixel_sha256: Annotated[str, Meta(max_length=64)]
    description: PixelDescription | None = None
    n_gray_levels: Annotated[int, Meta(ge=0, le=2**16)] = 0


class PartSuccess(Struct, frozen=True, tag="part"):
    """Reply with a part of a DICOM file, which follows the header.

    Attributes:
        number: Number of the request.
        size: Number of bytes.
    """

    number: int
    size: Annotated[int, Meta(ge=0)]


class DecodeFailure(Struct, frozen=True, tag="failure"):
    """Reply that reports a failure.

    Attributes:
        number: Number of the request.
        reason: See `UnreadableImageError`; None if only the memory limit was exceeded.
        out_of_memory: Whether the memory limit was exceeded; the parent then replaces the worker.
    """

    number: int
    reason: UnreadableReason | None
    out_of_memory: bool


Reply = DecodeSuccess | PartSuccess | DecodeFailure


def main(descriptor: int, limits: str, preload: Sequence[str]) -> None:
    """Reply to requests until the other end of the socket is closed.

    Args:
        descriptor: File descriptor of the socket.
        limits: `Limits` as JSON.
        preload: Modules to import first.
    """
    _exit_with_parent()
    warnings.simplefilter("ignore")  # decoder warnings quote the file
    for module in preload:
        import_module(module)
    connection = socket.socket(fileno=descriptor)
    parsed_limits = msgspec.json.decode(limits, type=Limits)
    _set_resource_limits(parsed_limits)
    connection.sendall(READY)
    # Buffered to send all replies to a message together, because process switches are expensive.
    input_stream, output_stream = connection.makefile("rb", BUFFER_BYTES), connection.makefile("wb", BUFFER_BYTES)
    decoder = msgspec.msgpack.Decoder(list[Request | PartRequest])
    while length := input_stream.read(LENGTH.size):
        requests = decoder.decode(input_stream.read(LENGTH.unpack(length)[0]))
        contents = [input_stream.read(request.size) for request in requests]
        for request, content in zip(requests, contents, strict=True):
            is_part = isinstance(request, PartRequest)
            _renew_cpu_limit(parsed_limits.part_cpu_seconds if is_part else parsed_limits.cpu_seconds)
            reply, arrays = _reply(request, content)
            header = msgspec.msgpack.encode(reply)
            output_stream.write(LENGTH.pack(len(header)) + header)
            for array in arrays:
                output_stream.write(np.ascontiguousarray(array).data)
        output_stream.flush()


def _exit_with_parent() -> None:
    """Make the kernel terminate this process when its parent exits, even if a decoder hangs.

    Standard input is a pipe that the parent never writes to. When the parent's end is closed, the kernel sends SIGIO, whose
    default action terminates the process. PR_SET_PDEATHSIG would terminate it as soon as the thread that started it exits.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def _set_resource_limits(limits: Limits) -> None:
    with contextlib.suppress(OSError):  # Linux only: the out-of-memory killer prefers the worker to its parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))


def _renew_cpu_limit(seconds: int) -> None:
    hard_limit = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard_limit))


def _reply(request: Request | PartRequest, content: bytes) -> tuple[Reply, Sequence[npt.NDArray[Any]]]:
    """Return the header of a reply and the arrays that follow it."""
    try:
        return _decode(request, content) if isinstance(request, Request) else _read_part(request, content)
    except UnreadableImageError as error:
        return DecodeFailure(request.number, _bounded(error.reason), _is_out_of_memory(error)), ()
    except MemoryError:
        return DecodeFailure(request.number, None, out_of_memory=True), ()


def _bounded(reason: UnreadableReason | None) -> UnreadableReason | None:
    """Return a reason that fits into a message, because numbers and texts from a file may have any length."""
    if reason is None:
        return None
    parameters = {
        name: value[:_MAX_TEXT] if isinstance(value, str) else max(-_MAX_INTEGER, min(value, _MAX_INTEGER))
        for name, value in reason.parameters.items()
    }
    return UnreadableReason(reason.code, parameters)


def _source(request: Request | PartRequest, content: bytes) -> Path | bytes:
    return Path(os.fsdecode(request.path)) if request.path else content


def _read_part(request: PartRequest, content: bytes) -> tuple[PartSuccess, Sequence[npt.NDArray[Any]]]:
    from pneumoscope.imaging.dicom_parts import read_part  # imports pydicom

    found = read_part(_source(request, content), request.part)
    return PartSuccess(request.number, len(found)), [np.frombuffer(found, np.uint8)]


def _decode(request: Request, content: bytes) -> tuple[DecodeSuccess, Sequence[npt.NDArray[Any]]]:
    source = _source(request, content)
    min_side = request.preprocessing.min_side if request.preprocessing else 0
    radiograph = decode(source, min_side=min_side, allow_rejected=True, keep_values=request.values)
    arrays: list[npt.NDArray[Any]] = []
    rejections: tuple[Rejection, ...] = ()
    pixel_sha256 = ""
    if request.preprocessing:
        preprocessed = preprocess_image(radiograph, request.preprocessing)
        rejections, pixel_sha256 = preprocessed.rejections, preprocessed.pixel_sha256
        arrays.append(preprocessed.pixels)
    if request.pixels:
        arrays.append(radiograph.pixels)
    if values := radiograph.values:
        arrays += [values.gray_levels, values.numbers.astype("<u2", copy=False)]
    success = DecodeSuccess(
        number=request.number,
        format=radiograph.format,
        mode=radiograph.mode,
        width=radiograph.width,
        height=radiograph.height,
        reduced_from=radiograph.reduced_from,
        chroma=radiograph.chroma,
        age=radiograph.age,
        header_rejections=radiograph.rejections,
        rejections=rejections,
        warnings=radiograph.warnings,
        identity=radiograph.identity,
        acquisition=radiograph.acquisition,
        pixel_sha256=pixel_sha256,
        description=values.description if values else None,
        n_gray_levels=len(values.gray_levels) if values else 0,
    )
    return success, arrays


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
