"""A decoder for Pillow that does harm on demand, imported by decode workers: a file that begins with BM names what it does."""

from __future__ import annotations

import ctypes
import os
import struct
import time

from PIL import Image, ImageFile

from pneumoscope.imaging import decode_worker

_KEPT: list[bytearray] = []


def _write_to_all(content: bytes) -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, content)
        except OSError:
            continue


def _drip() -> None:
    """A reply of which a byte comes now and then, so that no single wait is long."""
    _write_to_all(struct.pack("<I", 60_000))
    while True:
        _write_to_all(b"\1")
        time.sleep(0.05)


def _reply(number: int, width: int) -> None:
    reply = decode_worker.Success(number, "BMP", "L", width, width, None, 0.0, None, "")
    header = decode_worker.msgspec.msgpack.encode(reply)
    _write_to_all(decode_worker.LENGTH.pack(len(header)) + header)


def _spin() -> None:
    while True:
        pass


def _native_spin() -> None:
    """Without letting go of the interpreter."""
    items = ctypes.create_string_buffer(2**26)
    library = ctypes.PyDLL(None)
    while True:
        library.memset(items, 0, ctypes.c_size_t(2**26))


ACTIONS = {
    b"segfault": lambda: ctypes.string_at(0),
    b"abort": os.abort,
    b"loop": _spin,
    b"native": _native_spin,
    b"sleep": lambda: time.sleep(3600),
    b"8GB": lambda: bytearray(8 * 2**30),
    b"leak": lambda: _KEPT.append(bytearray(600 * 2**20)),
    b"print": lambda: (os.write(1, b"NOISE"), os.write(2, b"NOISE")),
    b"exit": lambda: os._exit(0),
    b"garbage": lambda: _write_to_all(b"\xff" * 4096),
    b"short": lambda: _write_to_all(struct.pack("<I", 3) + b"abc"),
    b"drip": _drip,
    b"another": lambda: _reply(10_000, 8),
    b"enormous": lambda: _reply(1, 70_000_000),
    b"warn": lambda: __import__("warnings").warn("NOISE", stacklevel=1),
    b"fault": lambda: {}["a fault of ours"],
}


class HostileFile(ImageFile.ImageFile):
    """64 x 64 pixels of grey, once the action is done."""

    format = "BMP"

    def _open(self) -> None:
        self._action = ACTIONS[self.fp.read()[2:]]
        self._size, self._mode = (64, 64), "L"

    def load(self) -> object:
        action, self._action = self._action, lambda: None
        action()
        self.im = Image.linear_gradient("L").resize((64, 64)).im
        return Image.Image.load(self)


Image.preinit()
Image.register_open("BMP", HostileFile, lambda prefix: prefix.startswith(b"BM"))
