"""Measure how well a network performs on control images without the lungs or without details.

The controls blank the center, keep only the center, or keep no details. An AUROC far above 0.5 with the center blanked
shows that the network can use something other than the lungs: collimation, markers, arms, the scanner. An AUROC with
the center alone that equals that of the whole image shows that the network does not depend on such cues. Because the
network was not trained on such images, a low AUROC does not prove that it ignores them.

Sources: Zech et al. 2018, PLoS Med 15:e1002683; DeGrave, Janizek and Lee 2021, Nat Mach Intell 3:610.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumoscope import __version__
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import of_patients_text
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import write_result
from pneumoscope.core.results import SCHEMA
from pneumoscope.data.hashing import read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.evaluation.selection import count_patients, count_unknown_patients, select_unreserved_images
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.paired import delong_test
from pneumoscope.statistics.roc import auroc_interval

__all__ = ["NETWORK_CONTROLS", "ControlResult", "Shortcuts", "measure_network_shortcuts", "shortcuts_markdown"]

Pixels = npt.NDArray[np.uint8]

_CELLS = 8  # per side
_BATCH = 32


@dataclasses.dataclass(frozen=True, slots=True)
class ControlResult:
    """The network's performance on one control.

    Attributes:
        name: Name of the control.
        auroc: AUROC on the modified images.
        difference: AUROC on the modified images minus AUROC on the whole images, paired.
    """

    name: str
    auroc: Interval
    difference: Interval


@dataclasses.dataclass(frozen=True, slots=True)
class Shortcuts:
    """Shortcut controls of the network of one bundle.

    Attributes:
        bundle, network, onnx_sha256: Name, network and file hash of the bundle.
        split, split_by, n, patients: The images, and how the validation images of the bundle were selected.
        whole: AUROC on the whole images.
        controls: One row per control.
        version, system: Version of pneumoscope and operating system.
        command: The command line.
        unknown_patients: Number of images of unknown patients; None in records of earlier versions.
    """

    bundle: str
    network: str
    onnx_sha256: str
    split: str
    split_by: str
    n: int
    patients: int
    whole: Interval
    controls: tuple[ControlResult, ...]
    version: str
    system: str
    command: str
    unknown_patients: int | None = None
    schema: int = SCHEMA
    notice: str = NOTICE


def _center(size: int, fraction: float) -> slice:
    margin = round(size * (1 - fraction) / 2)
    return slice(margin, size - margin)


def _blank_center(images: Pixels, fraction: float) -> Pixels:
    """Return images (n, size, size) with the central part set to the mean gray level; `fraction` is of each side."""
    changed = images.copy()
    inner = _center(images.shape[1], fraction)
    changed[:, inner, inner] = np.rint(images.mean((1, 2))).astype(np.uint8)[:, None, None]
    return changed


def _keep_center(images: Pixels, fraction: float) -> Pixels:
    """Return images (n, size, size) that are black outside the central part."""
    changed = np.zeros_like(images)
    inner = _center(images.shape[1], fraction)
    changed[:, inner, inner] = images[:, inner, inner]
    return changed


def _average_cells(images: Pixels) -> Pixels:
    """Return images (n, size, size) reduced to 8 x 8 averages and enlarged again."""
    size = images.shape[1:]
    return np.stack(
        [
            np.asarray(
                Image.fromarray(image)
                .resize((_CELLS, _CELLS), Image.Resampling.BOX)
                .resize(size, Image.Resampling.BILINEAR)
            )
            for image in images
        ]
    )


NETWORK_CONTROLS: Mapping[str, Callable[[Pixels], Pixels]] = {
    "center blanked, 60% of each side": lambda images: _blank_center(images, 0.6),
    "center blanked, 70% of each side": lambda images: _blank_center(images, 0.7),
    "center blanked, 80% of each side": lambda images: _blank_center(images, 0.8),
    "center only, 70% of each side": lambda images: _keep_center(images, 0.7),
    f"{_CELLS} x {_CELLS} averages": _average_cells,
}


def measure_network_shortcuts(
    target: Path,
    data: Path,
    *,
    split: str = "validation",
    labels: LabelMapping | None = None,
    out: Path | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Shortcuts:
    """Return the AUROC of a bundle on all images of a split and on their controls, with patient-level intervals.

    Args:
        target: Run folder or bundle.
        data, split, labels: See `selection.select_unreserved_images`.
        out: Folder for shortcuts.json and shortcuts.md; None writes no files.
        command: Command line to record in the result.
        progress: Called with (name of the control, images done, total).

    Raises:
        UsageError: The split is "test" or "all".
        DatasetError: Images cannot be used; see `selection.select_images`.
        BundleError: The bundle cannot be read or run.
    """
    session = BundleSession.load(find_bundle(target))
    card = session.card
    root, images = select_unreserved_images(target, data, split, labels)
    pixels = np.stack([preprocess(read_image(root, image), card.preprocessing) for image in images])
    positive = [image.positive for image in images]
    patients = [image.patient for image in images]

    def score(name: str, control: Callable[[Pixels], Pixels]) -> npt.NDArray[np.float32]:
        logits = []
        for start in range(0, len(pixels), _BATCH):
            batch = control(pixels[start : start + _BATCH])
            logits.append(session.logits(batch))
            if progress:
                progress(name, start + len(batch), len(pixels))
        return np.concatenate(logits)

    whole = score("whole image", lambda images: images)
    controls = []
    for name, control in NETWORK_CONTROLS.items():
        changed = score(name, control)
        difference, _ = delong_test(changed, whole, positive, patients)
        controls.append(ControlResult(name, auroc_interval(changed, positive, patients), difference))
    result = Shortcuts(
        bundle=card.name,
        network=card.network,
        onnx_sha256=card.onnx_sha256,
        split=split,
        split_by=card.split_by,
        n=len(images),
        patients=count_patients(images),
        unknown_patients=count_unknown_patients(images),
        whole=auroc_interval(whole, positive, patients),
        controls=tuple(controls),
        version=__version__,
        system=platform.platform(),
        command=command,
        notice=notice(card.population),
    )
    if out is not None:
        write_result(out, "shortcuts", result, shortcuts_markdown(result))
    return result


def shortcuts_markdown(result: Shortcuts) -> str:
    """Return the result as a Markdown table."""
    patients = of_patients_text(result.patients, result.unknown_patients, result.n)
    lines = [
        f"{result.bundle} ({result.network}) on {result.n} {result.split} images {patients}, split by"
        f" {result.split_by}. AUROC with 95% intervals over patients.",
        "",
        "| the network sees | AUROC | difference from the whole image |",
        "| --- | --- | --- |",
        f"| whole image | {result.whole} | |",
        *(f"| {row.name} | {row.auroc} | {row.difference:+.3f} |" for row in result.controls),
    ]
    return "\n".join([*lines, "", f"`{result.command}`", "", result.notice, ""])
