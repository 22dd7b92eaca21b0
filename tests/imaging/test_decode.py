"""Decoding of untrusted image files, checked against gray levels computed by hand."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging import decode as module
from pneumoscope.imaging.decode import MAX_PIXELS, decode

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int = 8, color: int = 0, body: bytes = b"") -> bytes:
    """Return a PNG of a header, one data chunk and an end chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def tiff(
    width: int, height: int, bits: int, body: bytes, *, white_is_zero: bool = False, signed: bool = False
) -> bytes:
    """Return a little-endian gray TIFF of one strip."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(body))] + ([(339, 2)] if signed else [])
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + b"\0\0\0\0"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_gray_is_decoded_exactly(kind: str) -> None:
    image = decode(encode(Image.fromarray(GRAY), kind), name="an image")
    assert np.array_equal(image.pixels, GRAY)
    assert (image.width, image.height, image.source, image.format, image.mode) == (30, 20, "an image", kind, "L")
    assert not image.pixels.flags.writeable


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_decoded_as_by_pillow(mode: str) -> None:
    data = encode(Image.fromarray(GRAY).convert(mode), "JPEG", quality=90)
    image = decode(data)
    assert (image.format, image.mode, image.source) == ("JPEG", mode, "bytes")
    assert np.array_equal(image.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("L")))


def test_lossless_webp() -> None:
    image = decode(encode(Image.fromarray(GRAY).convert("RGB"), "WEBP", lossless=True))
    assert np.array_equal(image.pixels, GRAY)
    assert image.format == "WEBP"


# ITU-R 601: 0.299 R + 0.587 G + 0.114 B
@pytest.mark.parametrize(
    ("color", "expected"),
    [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((200, 100, 50), 124), ((9, 9, 9), 9)],
)
def test_color_becomes_luma(color: tuple[int, int, int], expected: int) -> None:
    assert decode(encode(Image.new("RGB", (2, 2), color), "PNG")).pixels.tolist() == [[expected] * 2] * 2


# Transparent pixels are composited on black: 200 * 128 / 255 = 100.4
@pytest.mark.parametrize(("alpha", "expected"), [(255, 200), (128, 100), (0, 0)])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_composited_on_black(mode: str, alpha: int, expected: int) -> None:
    color = (200, alpha) if mode == "LA" else (200, 200, 200, alpha)
    image = decode(encode(Image.new(mode, (1, 1), color), "PNG"))
    assert (image.pixels.tolist(), image.mode) == ([[expected]], mode)


def test_palette() -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([0, 0, 0, 255, 0, 0, 40, 40, 40])
    assert decode(encode(image, "PNG")).pixels.tolist() == [[0, 76, 40]]
    assert decode(encode(image, "PNG", transparency=bytes([255, 255, 0]))).pixels.tolist() == [[0, 76, 0]]
    assert decode(encode(image, "PNG", transparency=1)).pixels.tolist() == [[0, 0, 40]]


def test_one_bit() -> None:
    bilevel = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "BMP", "TIFF"):
        image = decode(encode(bilevel, kind))
        assert (image.pixels.tolist(), image.mode) == ([[255, 0, 255]], "1")


def test_cmyk() -> None:
    # black ink alone: 255 - K
    image = decode(encode(Image.new("CMYK", (1, 1), (0, 0, 0, 55)), "TIFF"))
    assert (image.pixels.tolist(), image.mode) == ([[200]], "CMYK")
    image = decode(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 55)), "JPEG", quality=100))
    assert np.abs(image.pixels.astype(int) - 200).max() <= 1


DEEP = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
DEEP_GRAY = [[0, 0, 1, 1, 128, 255]]  # rounded x / 257: 128 / 257 = 0.498, 129 / 257 = 0.502


def test_16_bits_scale_so_that_65535_is_white() -> None:
    image = decode(png(6, 1, 16, body=b"\0" + DEEP.astype(">u2").tobytes()))
    assert (image.pixels.tolist(), image.mode) == (DEEP_GRAY, "I;16")
    assert not image.pixels.flags.writeable
    assert decode(encode(Image.fromarray(DEEP), "TIFF")).pixels.tolist() == DEEP_GRAY
    big = encode(Image.frombytes("I;16B", (6, 1), DEEP.astype(">u2").tobytes()), "TIFF")
    assert (decode(big).pixels.tolist(), decode(big).mode) == (DEEP_GRAY, "I;16B")


def test_16_bit_levels_are_rounded_to_the_nearest_of_256() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    nearest = [(2 * int(level) + 257) // 514 for level in levels.ravel()]
    assert decode(encode(Image.fromarray(levels), "TIFF")).pixels.ravel().tolist() == nearest


@pytest.mark.parametrize(("low", "high"), [(0, 100), (150, 256), (100, 130)])  # dark, bright, of little contrast
@pytest.mark.parametrize("factor", [256, 257])  # shifted by 8 bits, and scaled so that 255 becomes 65535
@pytest.mark.parametrize("marker", [None, 1, 65_535])
def test_8_bits_scaled_to_16_have_the_same_gray_levels(low: int, high: int, factor: int, marker: int | None) -> None:
    gray = np.random.default_rng(0).integers(low, high, (100, 100)).astype(np.uint8)
    stored = gray.astype(np.uint16) * factor
    if marker is not None:
        stored[0, :2] = marker
    image = decode(encode(Image.fromarray(stored), "PNG"))
    assert np.abs(image.pixels[1:].astype(int) - gray[1:]).max() <= 257 - factor
    assert image.warnings == ()


@pytest.mark.parametrize("low", [0, 60, 200])
def test_nearly_blank_8_bits_scaled_to_16_are_not_stretched(low: int) -> None:
    gray = np.random.default_rng(0).integers(low, low + 3, (40, 60)).astype(np.uint8) + np.uint8(16)
    assert np.array_equal(decode(encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")).pixels, gray)


def test_depth_is_measured_if_more_than_a_few_pixels_are_not_multiples() -> None:
    stored = np.random.default_rng(0).integers(0, 100, (100, 100)).astype(np.uint16) * 257  # 99 * 257 needs 15 bits
    stored[0, :3] += 1
    image = decode(encode(Image.fromarray(stored), "PNG"))
    assert image.warnings == ("bit_depth_measured",)
    assert np.abs(image.pixels - stored / 32767 * 255).max() <= 0.5 + 1e-6


def test_mask_of_few_multiples_of_256_has_its_depth_measured() -> None:
    stored = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.uint16) * 256
    assert decode(encode(Image.fromarray(stored), "PNG")).pixels.max() == 128  # of 10 bits


def test_12_bits_scale_so_that_4095_is_white() -> None:
    # two pixels in three bytes: 4095 and 2048; 2048 / 4095 * 255 = 127.53
    assert decode(tiff(2, 1, 12, b"\xff\xf8\x00")).pixels.tolist() == [[255, 128]]


@pytest.mark.parametrize(("bits", "body"), [(8, b"\x00\xff"), (16, b"\x00\x00\xff\xff")])
def test_white_is_zero_is_inverted_at_8_and_at_16_bits(bits: int, body: bytes) -> None:
    assert decode(tiff(2, 1, bits, body)).pixels.tolist() == [[0, 255]]
    assert decode(tiff(2, 1, bits, body, white_is_zero=True)).pixels.tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (tiff(1, 1, 32, b"\0" * 4), "I"),
        (tiff(1, 1, 16, b"\0" * 2, signed=True), "I"),
        (encode(Image.new("F", (2, 2), 0.5), "TIFF"), "F"),
    ],
)
def test_pixels_of_unknown_range_are_rejected(data: bytes, mode: str) -> None:
    with pytest.raises(UnreadableImageError, match=f"the value range of pixels of mode '{mode}' is unknown"):
        decode(data)


TRANSPOSITIONS = {  # of the stored pixels, for display (EXIF 2.3, tag 274)
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TRANSPOSITIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(GRAY).convert("RGB")
    data = encode(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(data).pixels, TRANSPOSITIONS[orientation](GRAY))


def test_exif_orientation_of_a_jpeg_and_of_16_bits() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(Image.fromarray(GRAY), "JPEG", exif=exif, quality=95)
    assert np.array_equal(decode(data).pixels, np.rot90(np.asarray(Image.open(io.BytesIO(data))), -1))
    assert decode(encode(Image.fromarray(DEEP), "PNG", exif=exif)).pixels.T.tolist() == DEEP_GRAY


@pytest.mark.parametrize(
    ("block", "failure"), [(b"rubbish instead of a directory", SyntaxError), (b"MM\0*\0\0", struct.error)]
)
def test_a_damaged_exif_block_is_ignored(block: bytes, failure: type[Exception]) -> None:
    data = encode(Image.fromarray(GRAY), "PNG", exif=block)
    with pytest.raises(failure):
        Image.open(io.BytesIO(data)).getexif()
    assert np.array_equal(decode(data).pixels, GRAY)


def test_orientations_agree_with_pillow() -> None:
    for orientation in TRANSPOSITIONS:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = encode(Image.fromarray(GRAY), "PNG", exif=exif)
        reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(decode(data).pixels, np.asarray(reference))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (
            b"no radiograph at all\n" * 20,
            r"not an image \(420 bytes\)\. Supported formats: JPEG, PNG, TIFF, BMP, WEBP, DICOM",
        ),
        (encode(Image.fromarray(GRAY), "GIF"), r"it is a GIF image \(\d+ bytes\)\. Convert it to PNG or JPEG"),
        (png(0, 5), r"the header of the image is damaged \("),
        (encode(Image.fromarray(GRAY), "JPEG")[:25], r"the header cannot be read \(Truncated File Read\)"),
        (encode(Image.fromarray(GRAY), "JPEG")[:400], "the pixels cannot be decoded"),
        (encode(Image.fromarray(GRAY), "PNG")[:400], "the pixels cannot be decoded"),
        (encode(Image.fromarray(GRAY), "BMP")[:-9], "the pixels cannot be decoded .*truncated"),
        (b"\x89PNG\r\n\x1a\n", r"the header of the image is damaged \(8 bytes\)"),
    ],
)
def test_unreadable_bytes_are_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decode(data, name="x.png")
    assert caught.value.path == "x.png"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_files_are_rejected(kind: str) -> None:
    whole = encode(Image.fromarray(GRAY).convert("RGB"), kind)
    expected = decode(whole).pixels
    n_rejected = 0
    for length in range(1, len(whole), 7):
        try:
            pixels = decode(whole[:length]).pixels
        except UnreadableImageError:
            n_rejected += 1
        else:  # only the end marker was lost
            assert np.array_equal(pixels, expected), length
    assert n_rejected > len(whole) // 7 - 5


@pytest.mark.filterwarnings("ignore")  # Pillow warns between its limit and twice that limit
@pytest.mark.parametrize(
    ("width", "height", "size"), [(65535, 65535, "pixels"), (9000, 9000, "9000 x 9000"), (12000, 8000, "12000 x 8000")]
)
def test_images_with_too_many_pixels_are_rejected_by_their_header(width: int, height: int, size: str) -> None:
    data = png(width, height, body=b"")
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match=f"the image has more than {MAX_PIXELS:,} pixels") as caught:
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size in str(caught.value)
    assert peak < 2_000_000


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_several_frames_are_rejected(kind: str) -> None:
    frames = [Image.fromarray(GRAY).convert("RGB"), Image.fromarray(255 - GRAY).convert("RGB")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableImageError, match=r"the file has 2 frames, not 1\. Extract one frame"):
        decode(data)


def test_the_format_is_detected_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "image.jpeg"
    path.write_bytes(encode(Image.fromarray(GRAY), "PNG"))
    image = decode(path)
    assert (image.format, image.source) == ("PNG", str(path))
    assert np.array_equal(image.pixels, GRAY)
    assert decode(path, name="given").source == "given"


def test_missing_files_and_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"cannot read '.*missing\.png': No such file or directory"):
        decode(tmp_path / "missing.png")
    with pytest.raises(UnreadableImageError, match="Is a directory"):
        decode(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        decode(path)


def test_files_with_too_many_bytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with path.open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)  # sparse
    with pytest.raises(UnreadableImageError, match=r"the file has 300,000,001 bytes; the maximum is 300,000,000"):
        decode(path)


def test_too_many_bytes_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImageError, match=r"the file has 101 bytes; the maximum is 100"):
        decode(bytes(101))


def test_importing_changes_no_settings_of_pillow_or_warnings() -> None:
    code = (
        "import sys, warnings, numpy, pydantic; from PIL import Image, ImageFile\n"
        "state = lambda: (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, tuple(warnings.filters))\n"
        "before = state(); import pneumoscope.imaging.decode, pneumoscope.imaging.preprocess\n"
        "assert state() == before\n"
        "assert 'pydicom' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_threads_give_the_same_pixels() -> None:
    data = encode(Image.fromarray(GRAY), "PNG")
    images: list[npt.NDArray[np.uint8]] = []
    threads = [threading.Thread(target=lambda: images.append(decode(data).pixels)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(images) == 8
    assert all(np.array_equal(image, GRAY) for image in images)


SMALL = {
    "JPEG": encode(Image.fromarray(GRAY), "JPEG"),
    "PNG": encode(Image.fromarray(GRAY), "PNG"),
    "TIFF": encode(Image.fromarray(GRAY), "TIFF"),
    "BMP": encode(Image.fromarray(GRAY), "BMP"),
    "WEBP": encode(Image.fromarray(GRAY).convert("RGB"), "WEBP"),
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_damaged_files_give_an_image_or_an_unreadable_image_error(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SMALL[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(damaged))
    except UnreadableImageError:
        return
    assert image.pixels.dtype == np.uint8


# --- JPEG decoded at reduced size -------------------------------------------------------------------------------------


def smooth(height: int, width: int) -> Image.Image:
    """Return waves of about 40 pixels, which blocks of 8 pixels preserve."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.rint(128 + 60 * np.sin(rows / 7) + 60 * np.cos(columns / 6)).astype(np.uint8))


# The largest of 1, 1/2, 1/4 and 1/8 that leaves both sides at least `min_side`, rounded up.
HALF, QUARTER, EIGHTH = (151, 100), (76, 50), (38, 25)


@pytest.mark.parametrize(
    ("min_side", "size"),
    [
        (0, (301, 200)),
        (101, (301, 200)),
        (100, HALF),
        (51, HALF),
        (50, QUARTER),
        (26, QUARTER),
        (25, EIGHTH),
        (1, EIGHTH),
    ],
)
def test_a_jpeg_is_not_reduced_below_the_minimum_side(min_side: int, size: tuple[int, int]) -> None:
    image = decode(encode(smooth(200, 301), "JPEG"), min_side=min_side)
    assert (image.width, image.height) == size
    assert image.reduced_from == (None if size == (301, 200) else (301, 200))


def test_reduced_pixels_are_averages() -> None:
    data = encode(smooth(160, 320), "JPEG", quality=95)
    whole, half = decode(data).pixels.astype(float), decode(data, min_side=80).pixels
    assert np.abs(whole.reshape(80, 2, 160, 2).mean(axis=(1, 3)) - half).max() < 2


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_small_jpeg_is_not_reduced(mode: str) -> None:
    data = encode(smooth(224, 224).convert(mode), "JPEG")
    image = decode(data, min_side=448)
    assert np.array_equal(image.pixels, decode(data).pixels)
    assert image.reduced_from is None


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_only_jpegs_are_reduced(kind: str) -> None:
    data = encode(smooth(160, 320).convert("RGB"), kind)
    image = decode(data, min_side=16)
    assert np.array_equal(image.pixels, decode(data).pixels)
    assert image.reduced_from is None


def test_the_size_of_a_rotated_jpeg_is_that_after_rotation() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(smooth(200, 301), "JPEG", exif=exif)
    image = decode(data, min_side=100)
    assert (image.width, image.height, image.reduced_from) == (100, 151, (200, 301))
    assert decode(data).reduced_from is None


def test_a_truncated_jpeg_is_rejected_at_any_size() -> None:
    data = encode(smooth(400, 400), "JPEG")
    with pytest.raises(UnreadableImageError, match=r"the pixels cannot be decoded .*truncated"):
        decode(data[: len(data) // 2], min_side=100)


# --- Other files than regular ones ------------------------------------------------------------------------------------


def test_a_pipe_is_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.jpeg")
    with pytest.raises(
        UnreadableImageError, match=r"image\.jpeg': it is a pipe or a device, not a file\. Pass the content"
    ):
        decode(tmp_path / "image.jpeg")


def test_invalid_file_names_are_rejected() -> None:
    with pytest.raises(UnreadableImageError, match=r"null (byte|character)"):
        decode(Path("image\0.jpeg"))
