"""pydicom's test files, with the compression set of DICOM's working group 4, are decoded as by dcmtk, or a reason is stated."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.file_type import identify_file
from pneumoscope.imaging.image import Radiograph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # pydicom warns of faults in these files
    pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="dcmtk is not installed"),
]
pytest.importorskip("data_store", reason="pydicom-data is not installed")
pytest.importorskip("imagecodecs", reason="the extra [dicom] is not installed")

ROOTS = (Path(str(files("pydicom") / "data" / "test_files")), Path(str(files("data_store") / "data")))
DICOM = [
    path for root in ROOTS for path in sorted(root.rglob("*")) if path.is_file() and identify_file(path).name == "DICOM"
]
REASONS = (
    "it is in color",
    "it contains no image",
    "frames, not 1",
    "deflated DICOM is not supported",
    "its pixel format is not supported",  # 1 and 32 bits
    "the DICOM header cannot be read",  # badVR.dcm
    "less than expected",  # MR_truncated.dcm
    "the compressed frame is",  # JPEG2000-embedded-sequence-delimiter.dcm, whose codestream has a wrong size
)
# dcmtk 3.6.7 decodes no JPEG 2000; the same images without compression, where there are any.
UNCOMPRESSED = {
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "J2K_pixelrep_mismatch.dcm": None,
    "JPEG2000.dcm": "JPEG2000_UNC.dcm",
    "693_J2KI.dcm": "693_UNCI.dcm",
    "693_J2KR.dcm": "693_UNCR.dcm",
    "MR2_J2KI.dcm": "MR2_UNCI.dcm",
    "MR2_J2KR.dcm": "MR2_UNCR.dcm",
    "RG1_J2KI.dcm": "RG1_UNCI.dcm",
    "RG1_J2KR.dcm": "RG1_UNCR.dcm",
    "RG3_J2KI.dcm": "RG3_UNCI.dcm",
    "RG3_J2KR.dcm": "RG3_UNCR.dcm",
    "explicit_VR-UN.dcm": None,
}


def test_the_files_are_those_of_the_packages() -> None:
    names = {path.name for path in DICOM}
    assert names >= {name for name in UNCOMPRESSED if name}
    assert len(DICOM) > 200


@pytest.mark.parametrize("path", DICOM, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_gray_levels_are_those_of_dcmtk_or_a_reason_is_stated(path: Path, tmp_path: Path) -> None:
    image = decoded(path)
    if isinstance(image, str):
        assert any(reason in image for reason in REASONS), image
        return
    if path.name in UNCOMPRESSED:
        other = UNCOMPRESSED[path.name]
        if other is None:
            assert len(np.unique(image.pixels)) > 50
        else:
            plain = next(each for each in DICOM if each.name == other)
            difference = np.abs(image.pixels.astype(int) - decode(plain, allow_rejected=True).pixels)
            assert difference.max() <= 1
        return
    if "window_ignored" in image.warnings:  # a stated reason; all of these are CT and MR images
        assert [rejection.code for rejection in image.rejections][:1] == ["modality_not_supported"]
        return
    differences = [np.abs(image.pixels.astype(int) - each).max() for each in rendered(path, tmp_path)]
    assert min(differences) <= 1


def decoded(path: Path) -> Radiograph | str:
    """Return the image, or the reason why it cannot be decoded."""
    try:
        return decode(path, allow_rejected=True)
    except UnreadableImageError as error:
        return error.detail


def rendered(path: Path, folder: Path) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the image as dcmtk displays it, with its first LUT or window.

    Without one, yield it from its minimum to its maximum, and in the full range of each bit depth.
    """
    header = dcmread(path, stop_before_pixels=True, force=True)
    if header.get("VOILUTSequence"):
        windows = [["+Wl", "1"]]
    elif header.get("WindowWidth"):
        windows = [["+Wi", "1"]]
    else:
        windows = [["+Wm"], *(["+Ww", str(2 ** (bits - 1)), str(2**bits)] for bits in range(8, 17))]
    source, output = path, folder / "image.png"
    if "JPEGLS" in path.name or "jpeg_ls" in path.name:
        source = folder / "decompressed.dcm"
        subprocess.run(["dcmdjpls", path, source], check=True, timeout=60)
    for window in windows:
        subprocess.run(["dcmj2pnm", "+on", "--no-overlays", *window, source, output], check=True, timeout=60)
        yield np.asarray(Image.open(output).convert("L"), dtype=np.int64)
