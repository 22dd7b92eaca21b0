"""Small image files of one mean gray level, and DICOMDIR files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from pydicom import Dataset, Sequence
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)
from tests.conftest import SIZE, halves

__all__ = ["dicom", "dicomdir", "png"]


def png(level: int, height: int = SIZE, width: int = SIZE) -> bytes:
    """Return a PNG file of this mean gray level; its right half is brighter."""
    file = io.BytesIO()
    Image.fromarray(halves(level, height, width)).save(file, "PNG")
    return file.getvalue()


def dicom(level: int, size: int = SIZE, **elements: Any) -> bytes:
    """Return a DICOM file of this mean gray level with these elements."""
    pixels = halves(level, size, size)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["age"])
    dataset.Modality, dataset.PhotometricInterpretation, dataset.PixelData = "DX", "MONOCHROME2", pixels.tobytes()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 8, 8, 7
    dataset.PixelRepresentation, dataset.BodyPartExamined, dataset.ViewPosition = 0, "CHEST", "PA"
    dataset.WindowCenter, dataset.WindowWidth = 127.5, 256
    for name, value in elements.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicomdir(path: str, *files: tuple[str, ...]) -> None:
    """Write a DICOMDIR that lists these files as images."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MediaStorageDirectoryStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2"
    records = [Dataset()]
    records[0].DirectoryRecordType = "PATIENT"
    for parts in files:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", list(parts)
        records.append(record)
    data.DirectoryRecordSequence = Sequence(records)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
