"""A malicious Pillow plug-in for decode workers: the bytes after the header of a BMP file name the action that
decoding runs."""

from __future__ import annotations

import ctypes
import math
import os
import struct
import time
from dataclasses import replace
from typing import Any

from PIL import Image, ImageFile

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.pixel_values import PixelDescription
from pneumoscope.imaging.sandbox import worker

DESCRIPTION = PixelDescription(1.0, 0.0, 0.0, 3.0, 8)
HEADER_BYTES = 10  # "BM", the file size and reserved zeros
_LEAKED: list[bytearray] = []


def _write_to_all_descriptors(content: bytes) -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, content)
        except OSError:
            continue


def _drip() -> None:
    """Send a reply byte by byte, so that no single read takes long."""
    _write_to_all_descriptors(struct.pack("<I", 60_000))
    while True:
        _write_to_all_descriptors(b"\1")
        time.sleep(0.05)


def _reply(number: int, width: int, values: bytes = b"", **fields: Any) -> None:
    reply = worker.DecodeSuccess(
        number=number,
        format="BMP",
        mode="L",
        width=width,
        height=width,
        reduced_from=None,
        chroma=0.0,
        age=None,
        header_rejections=(),
        rejections=(),
        warnings=(),
        identity=None,
        pixel_sha256="",
        **fields,
    )
    header = worker.msgspec.msgpack.encode(reply)
    _write_to_all_descriptors(worker.LENGTH.pack(len(header)) + header + values)


def _spin() -> None:
    while True:
        pass


def _native_spin() -> None:
    """Loop in native code without releasing the GIL."""
    items = ctypes.create_string_buffer(2**26)
    library = ctypes.PyDLL(None)
    while True:
        library.memset(items, 0, ctypes.c_size_t(2**26))


def _fail(code: str, parameters: dict[str, Any]) -> None:
    header = worker.msgspec.msgpack.encode(worker.DecodeFailure(1, worker.UnreadableReason(code, parameters), False))
    _write_to_all_descriptors(worker.LENGTH.pack(len(header)) + header)


def _raise_long_reason() -> None:
    """Raise an error with a number and a text that a file can make as long as it likes."""
    raise UnreadableImageError("", UnreadableReason("header_not_readable", {"error": "e" * 10**6, "frames": 10**30}))


ACTIONS = {
    b"segfault": lambda: ctypes.string_at(0),
    b"abort": os.abort,
    b"loop": _spin,
    b"native": _native_spin,
    b"sleep": lambda: time.sleep(3600),
    b"8GB": lambda: bytearray(8 * 2**30),
    b"leak": lambda: _LEAKED.append(bytearray(600 * 2**20)),
    b"print": lambda: (os.write(1, b"NOISE"), os.write(2, b"NOISE")),
    b"exit": lambda: os._exit(0),
    b"garbage": lambda: _write_to_all_descriptors(b"\xff" * 4096),
    b"short": lambda: _write_to_all_descriptors(struct.pack("<I", 3) + b"abc"),
    b"drip": _drip,
    b"wrong number": lambda: _reply(10_000, 8),
    b"wrong size": lambda: _reply(1, 70_000_000),
    # A number without a gray level, infinite values, and no values
    b"values 1": lambda: _reply(1, 2, bytes(4) + b"\4\0" * 4, description=DESCRIPTION, n_gray_levels=4),
    b"values 2": lambda: _reply(
        1, 2, bytes(4) + bytes(8), description=replace(DESCRIPTION, slope=math.inf), n_gray_levels=4
    ),
    b"values 3": lambda: _reply(1, 2),
    b"unknown reason": lambda: _fail("bad_day", {}),
    b"reason without parameters": lambda: _fail("multiple_frames", {}),
    b"reason of another type": lambda: _fail("file_too_large", {"bytes": "many", "maximum": 1}),
    b"long reason": _raise_long_reason,
    b"warn": lambda: __import__("warnings").warn("NOISE", stacklevel=1),
    b"exception": lambda: {}["missing"],
}


class HostileFile(ImageFile.ImageFile):
    """An image of 64 x 64 gray pixels, returned after the action."""

    format = "BMP"

    def _open(self) -> None:
        self._action = ACTIONS[self.fp.read()[HEADER_BYTES:]]
        self._size, self._mode = (64, 64), "L"

    def load(self) -> object:
        action, self._action = self._action, lambda: None
        action()
        self.im = Image.linear_gradient("L").resize((64, 64)).im
        return Image.Image.load(self)


Image.preinit()
Image.register_open("BMP", HostileFile, lambda prefix: prefix.startswith(b"BM"))
