"""Variants of an image: lossless file formats, small changes, and corruptions that make it unusable."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

__all__ = ["CHANGES", "CORRUPTIONS", "FORMATS", "GrayImage", "Variants", "encode_dicom"]

GrayImage = npt.NDArray[np.uint8]
Variants = Mapping[str, Callable[[GrayImage], GrayImage | bytes]]

_ROTATION = 10  # degrees
_BRIGHTNESS = 0.2  # relative change of gray levels
_JPEG_QUALITY = 50


def encode_dicom(image: GrayImage, *, inverted: bool = False) -> bytes:
    """Return the image as a DICOM file with 12 bits stored and a window over the full range.

    Args:
        image: Gray levels, shape (height, width).
        inverted: Store inverted gray levels with MONOCHROME1, so that the displayed image is the same.
    """
    stored = np.rint(image.astype(np.float64) * (4095 / 255)).astype(np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "AP"
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 2047.5, 4095, "LINEAR_EXACT"
    dataset.PixelData = (4095 - stored if inverted else stored).tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _encode(image: npt.NDArray[Any], file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format, **options)
    return file.getvalue()


def _rotate(image: GrayImage, degrees: float) -> GrayImage:
    """Return the image rotated about its center, counterclockwise for positive angles; corners are black."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))


def _scale_brightness(image: GrayImage, factor: float) -> GrayImage:
    return np.clip(np.rint(image * np.float64(factor)), 0, 255).astype(np.uint8)


def _center_crop(image: GrayImage, area: float) -> GrayImage:
    """Return the center of the image; `area` is the fraction of its area that is kept, 0 to 1."""
    height, width = (max(1, round(side * area**0.5)) for side in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _shuffle_pixels(image: GrayImage) -> GrayImage:
    return np.random.default_rng(int(image.sum())).permutation(image.ravel()).reshape(image.shape)


FORMATS: Variants = {
    "PNG": lambda image: _encode(image, "PNG"),
    "PNG, 16 bits": lambda image: _encode(image.astype(np.uint16) * 257, "PNG"),
    "DICOM, 12 bits": encode_dicom,
    "DICOM, MONOCHROME1": lambda image: encode_dicom(image, inverted=True),
}
CHANGES: Variants = {
    f"JPEG quality {_JPEG_QUALITY}": lambda image: _encode(image, "JPEG", quality=_JPEG_QUALITY),
    f"rotated {_ROTATION}° counterclockwise": lambda image: _rotate(image, _ROTATION),
    f"rotated {_ROTATION}° clockwise": lambda image: _rotate(image, -_ROTATION),
    f"{_BRIGHTNESS:.0%} brighter": lambda image: _scale_brightness(image, 1 + _BRIGHTNESS),
    f"{_BRIGHTNESS:.0%} darker": lambda image: _scale_brightness(image, 1 - _BRIGHTNESS),
}
CORRUPTIONS: Variants = {
    "inverted": lambda image: 255 - image,
    "upside down": lambda image: np.ascontiguousarray(np.rot90(image, 2)),
    "rotated 90° counterclockwise": lambda image: np.ascontiguousarray(np.rot90(image)),
    "rotated 90° clockwise": lambda image: np.ascontiguousarray(np.rot90(image, 3)),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "center crop, 25% of the area": lambda image: _center_crop(image, 0.25),
    "blank": lambda image: np.full_like(image, int(image.mean())),
    "shuffled pixels": _shuffle_pixels,
}
