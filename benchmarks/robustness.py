"""Whether a bundle says the same of the same image however it comes, and says nothing of what it cannot know.

- The same image at full size and as a small copy; as PNG, as PNG and DICOM of more bits, with black and white the other way round
  in the file: the probability should not move.
- An image compressed harder, turned a little, lighter or darker: few decisions should change.
- An image turned, mirrored, inverted or cut, noise, phantoms, and any folder of pictures of which nothing is known: how many are
  rejected.

An image that is rejected in one form and not in another is a changed decision. By default it looks at validation images: the test
images belong to `pneumoscope evaluate` and its ledger.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from pneumoscope import __version__
from pneumoscope.core.errors import DatasetError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.results import Interval
from pneumoscope.data.manifest import LABELS
from pneumoscope.evaluation.selection import select_images
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom_drawing import draw
from pneumoscope.inference.discovery import discover_images
from pneumoscope.inference.model import LabelledImage, Model, load_model
from pneumoscope.runs.run_folder import MANIFEST_FILE
from pneumoscope.statistics.intervals import proportion

Grey = npt.NDArray[np.uint8]
TURN = 10  # degrees to either side
LIGHT = 0.2  # share of every grey level, more or less
QUALITY = 50  # of JPEG
NEAR = 0.05  # of a probability
FIRST_PHANTOM = 10_000  # no gate has learned from this one and those that follow


# --- the same image in another form -----------------------------------------------------------------------------------


def png(image: Grey) -> bytes:
    """8 bits."""
    return _file(Image.fromarray(image), "PNG")


def deep_png(image: Grey) -> bytes:
    """16 bits, white at the top of them."""
    return _file(Image.fromarray(image.astype(np.uint16) * 257), "PNG")


def dicom(image: Grey, *, inverted: bool = False) -> bytes:
    """12 bits of 16 with the window that shows all of them; `inverted` stores white as 0 and says so."""
    stored = np.rint(image.astype(np.float64) * (4095 / 255)).astype(np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.BodyPartExamined, data.ViewPosition = "DX", "CHEST", "AP"
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 2047.5, 4095, "LINEAR_EXACT"
    data.PixelData = (4095 - stored if inverted else stored).tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def squeezed(image: Grey) -> bytes:
    """JPEG of half quality."""
    return _file(Image.fromarray(image), "JPEG", quality=QUALITY)


def turned(image: Grey, degrees: float) -> Grey:
    """Turned about its middle; what comes into view is black."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))


def lit(image: Grey, factor: float) -> Grey:
    """All grey levels times a factor."""
    return np.clip(np.rint(image * np.float64(factor)), 0, 255).astype(np.uint8)


def middle(image: Grey, area: float) -> Grey:
    """The middle of an image, of this share of its area."""
    height, width = (max(1, round(side * area**0.5)) for side in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FORMATS: dict[str, Callable[[Grey], LabelledImage]] = {
    "PNG": png,
    "PNG, 16 bits": deep_png,
    "DICOM, 12 bits": dicom,
    "DICOM, MONOCHROME1": lambda image: dicom(image, inverted=True),
}
CHANGES: dict[str, Callable[[Grey], LabelledImage]] = {
    f"JPEG quality {QUALITY}": squeezed,
    f"turned {TURN}° left": lambda image: turned(image, TURN),
    f"turned {TURN}° right": lambda image: turned(image, -TURN),
    f"{LIGHT:.0%} lighter": lambda image: lit(image, 1 + LIGHT),
    f"{LIGHT:.0%} darker": lambda image: lit(image, 1 - LIGHT),
}
CORRUPTIONS: dict[str, Callable[[Grey], LabelledImage]] = {
    "inverted": lambda image: 255 - image,
    "upside_down": lambda image: np.ascontiguousarray(np.rot90(image, 2)),
    "on its left side": lambda image: np.ascontiguousarray(np.rot90(image)),
    "on its right side": lambda image: np.ascontiguousarray(np.rot90(image, 3)),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "middle quarter of the area": lambda image: middle(image, 0.25),
    "blank": lambda image: np.full_like(image, int(image.mean())),
    "noise of its greys": lambda image: (
        np.random.default_rng(int(image.sum())).permutation(image.ravel()).reshape(image.shape)
    ),
}


# --- what became of it -----------------------------------------------------------------------------------------------


def compare(
    name: str, before: Sequence[Prediction], after: Sequence[Prediction], patients: Sequence[str]
) -> dict[str, Any]:
    """How often the decision changed, and how far probabilities moved where both forms have one."""
    changed = np.array([a.decision != b.decision for a, b in zip(before, after, strict=True)])
    pairs = [
        (a.probability, b.probability)
        for a, b in zip(before, after, strict=True)
        if a.probability is not None and b.probability is not None
    ]
    moved = np.array([abs(a - b) for a, b in pairs])
    return {
        "name": name,
        "changed": proportion(changed, list(patients)),
        "largest": float(moved.max()) if len(moved) else None,
        "near": proportion(moved <= NEAR, None) if len(moved) else None,
        "rejected": sum(prediction.decision == "rejected" for prediction in after),
    }


def rejections(name: str, found: Iterable[Prediction], patients: Sequence[str] | None = None) -> dict[str, Any]:
    """How many were rejected, and what was said of the others. A file that cannot be read counts as rejected."""
    kept = list(found)
    rejected = np.array([prediction.decision in {"rejected", None} for prediction in kept])
    reasons = Counter(
        (p.rejection.code if p.rejection else p.failure and p.failure.code)
        for p, out in zip(kept, rejected, strict=True)
        if out
    )
    return {
        "name": name,
        "rejected": proportion(rejected, patients),
        "reasons": dict(reasons.most_common(3)),
        "predicted_pneumonia": sum(prediction.decision == "pneumonia" for prediction in kept),
    }


def measure(model: Model, data: Path, target: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written."""
    root, images = select_images(data, given.split, target / MANIFEST_FILE)
    rng = np.random.default_rng(given.seed)
    each = min(given.images // 2, *(sum(image.label == label for image in images) for label in LABELS))
    drawn = [
        found[place]
        for found in ([image for image in images if image.label == label] for label in LABELS)
        for place in sorted(rng.permutation(len(found))[:each].tolist())
    ]
    patients = [image.patient for image in drawn]
    pixels = [decode(root / image.path).pixels for image in drawn]

    def judged(change: Callable[[Grey], LabelledImage], what: str) -> list[Prediction]:
        print(f"{what}: {len(pixels)} images", file=sys.stderr, flush=True)
        return list(model.predict_many(change(image) for image in pixels))

    before = judged(lambda image: image, "as they are")
    found: dict[str, Any] = {
        "bundle": model.card.name,
        "network": model.card.network,
        "onnx_sha256": model.card.onnx_sha256,
        "operating_point": model.point.rule_text(),
        "split": given.split,
        "n": len(drawn),
        "patients": len({patient or image.path for patient, image in zip(patients, drawn, strict=True)}),
        "seed": given.seed,
        "as_they_are": rejections("as they are", before, patients),
        "formats": [compare(name, before, judged(change, name), patients) for name, change in FORMATS.items()],
        "changes": [compare(name, before, judged(change, name), patients) for name, change in CHANGES.items()],
        "corruptions": [rejections(name, judged(change, name), patients) for name, change in CORRUPTIONS.items()],
        "other_images": [],
        "sizes": None,
        "version": __version__,
        "system": platform.platform(),
        "notice": NOTICE,
    }
    phantoms = (draw(FIRST_PHANTOM + i, i % 2 == 0) for i in range(given.phantoms))
    found["other_images"].append(rejections("phantoms", model.predict_many(phantoms)))
    for folder in given.pictures:
        found["other_images"].append(rejections(folder.name, model.predict_many(discover_images([str(folder)]).paths)))
    if given.originals:
        large = [Path(path) for path in discover_images([str(given.originals)]).paths]
        small = [given.copies / path.relative_to(given.originals) for path in large]
        if gone := [path for path in small if not path.is_file()]:
            raise DatasetError(
                f"{len(gone)} of {len(large)} images at full size have no copy; the first: {str(gone[0])!r}",
                hint="Name the folder whose inner paths are those of --originals",
            )
        both = [list(model.predict_many(paths)) for paths in (large, small)]
        found["sizes"] = compare("full size and its copy", *both, [""] * len(large)) | {"n": len(large)}
    return found


# --- table -----------------------------------------------------------------------------------------------------------


def share(interval: Interval | None) -> str:
    """1.2% [0.3%, 4.1%]."""
    if interval is None or interval.value is None:
        return "none"
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def table(found: dict[str, Any]) -> str:
    """Markdown for people."""
    lines = [
        f"{found['bundle']} ({found['network']}) on {found['n']} {found['split']} images of {found['patients']} patients, half of"
        f" them normal; pneumonia is called by this rule: {found['operating_point']}. Shares with 95% intervals, seed"
        f" {found['seed']}.",
        f"Rejected as they are: {share(found['as_they_are']['rejected'])}.",
        "",
        f"| the same image as | decisions changed | largest change of probability | within {NEAR} | rejected |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = [*found["formats"], *found["changes"]]
    if found["sizes"]:
        rows.insert(0, found["sizes"] | {"name": f"{found['sizes']['name']} ({found['sizes']['n']} other images)"})
    for row in rows:
        largest = "none" if row["largest"] is None else f"{row['largest']:.3f}"
        lines.append(
            f"| {row['name']} | {share(row['changed'])} | {largest} | {share(row['near'])} | {row['rejected']} |"
        )
    lines += [
        "",
        "| what should be rejected | n | rejected | most often because | called pneumonia |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in [*found["corruptions"], *found["other_images"]]:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
        lines.append(
            f"| {row['name']} | {row['rejected'].n} | {share(row['rejected'])} | {reasons} | {row['predicted_pneumonia']} |"
        )
    return "\n".join([*lines, "", f"`{found['command']}`", "", NOTICE, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="a run's folder, or a bundle")
    parser.add_argument("--data", type=Path, required=True, help="images: a folder, or a manifest for a bundle alone")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--images", type=int, default=400, help="how many are drawn, half of each label")
    parser.add_argument("--phantoms", type=int, default=50)
    parser.add_argument("--operating-point", default="")
    parser.add_argument("--originals", type=Path, help="images at full size")
    parser.add_argument("--copies", type=Path, help="the same images, smaller, under the same names")
    parser.add_argument(
        "--pictures", type=Path, action="append", default=[], help="a folder of which all is to be rejected"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for robustness.json and robustness.md")
    given = parser.parse_args(arguments)
    if bool(given.originals) != bool(given.copies):
        parser.error("--originals and --copies go together")
    model = load_model(given.target, operating_point=given.operating_point, threads=1)
    found = measure(model, given.data, given.target, given)
    found["command"] = shlex.join(
        ["python", "benchmarks/robustness.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    text = table(found)
    print(text)
    if given.out:
        plain = json.dumps(found, indent=2, default=dataclasses.asdict, allow_nan=False)
        write_atomically(given.out / "robustness.json", plain + "\n")
        write_atomically(given.out / "robustness.md", text)


if __name__ == "__main__":
    main()
