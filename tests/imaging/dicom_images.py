"""DICOM chest radiographs of a ramp of gray levels, with any elements."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from tests.imaging.conformance import NO_WINDOW, dataset

RAMP = np.arange(0, 4095, 13, dtype=np.uint16).reshape(9, 35)
NAME = "Doe^Jane"


def image(pixels: npt.NDArray[Any] = RAMP, stored: int = 12, **elements: Any) -> Dataset:
    """Return a chest radiograph; elements that are None are left out."""
    defaults = {
        "PatientName": NAME,
        "ViewPosition": "PA",
        "PatientAge": None,
        "PresentationIntentType": None,
        **NO_WINDOW,
    }
    return dataset(pixels, stored, **(defaults | elements))


def written(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():  # pydicom warns of some of the values that are wrong on purpose
        warnings.simplefilter("ignore")
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
