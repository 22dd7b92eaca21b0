"""Measure the speed-up and the loss of accuracy of 8-bit quantization, to decide whether to ship a quantized network.

ONNX Runtime's static quantization: weights per channel, activations per tensor with ranges from training images. Only the
convolutions that the logit depends on are quantized; the input checks and the final layers stay in 32 bits. Goal: 1.4 times as
fast, with accuracy and AUROC lower by at most 0.3 points. Sessions take turns; a ratio is the median over the rounds.
Validation images only: test images are reserved for `pneumoscope evaluate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from pneumoscope import __version__
from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Card
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.evaluation.selection import select_images
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT, sigmoid
from pneumoscope.inference.model import BATCH_SIZE
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import MANIFEST_FILE, find_bundle
from pneumoscope.statistics.roc import auroc

MIN_SPEEDUP, MAX_LOSS = 1.4, 0.003
CALIBRATION_METHODS = {
    "min-max": quantization.CalibrationMethod.MinMax,
    "entropy": quantization.CalibrationMethod.Entropy,
    "99.99th percentile": quantization.CalibrationMethod.Percentile,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of the network.

    Attributes:
        name: Name of the variant.
        megabytes: Size of the file.
        speedup: Median over rounds of its speed relative to 32 bits.
        auroc, accuracy: On validation images; accuracy at the default operating point.
        max_change: Largest absolute change of a score, 0 to 1.
    """

    name: str
    megabytes: float
    speedup: float
    auroc: float
    accuracy: float
    max_change: float


class CalibrationImages(quantization.CalibrationDataReader):
    """Batches of network inputs that determine the ranges of activations."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(np.array_split(pixels, max(1, len(pixels) // BATCH_SIZE)))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """Return the next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def quantize(network: bytes, pixels: npt.NDArray[np.uint8], method: quantization.CalibrationMethod) -> bytes:
    """Return the ONNX file with the convolutions that the logit depends on quantized to 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("original", "prepared", "quantized"))
        original.write_bytes(network)
        quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            CalibrationImages(pixels),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=method,
            nodes_to_quantize=convolutions_of_logit(onnx.load(str(prepared))),
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        return quantized.read_bytes()


def convolutions_of_logit(model: onnx.ModelProto) -> list[str]:
    """Return the names of the convolutions that the logit depends on; the products after them are cheap and sensitive."""
    producers = {output: node for node in model.graph.node for output in node.output}
    pending, visited = ["logit"], set()
    names = []
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.output[0] in visited:  # identified by its output, because a node may have no name
            continue
        visited.add(node.output[0])
        pending += node.input
        if node.op_type == "Conv":
            names.append(node.name)
    return names


def load_images(
    data: Path, split: str, manifest: Path, card: Card, max_images: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return network inputs of evenly spaced images of a split, shape (n, size, size), and their labels, shape (n,)."""
    root, images = select_images(data, split, manifest)
    indices = np.unique(np.linspace(0, len(images) - 1, min(max_images, len(images))).astype(int))
    pixels = np.stack([preprocess(decode(root / images[i].path), card.preprocessing) for i in indices])
    return pixels, np.array([images[i].positive for i in indices])


def measure_rate(session: BundleSession, pixels: npt.NDArray[np.uint8]) -> float:
    """Return images per second in batches of the size that `predict` uses."""
    start = time.perf_counter()
    for first in range(0, len(pixels), BATCH_SIZE):
        session.outputs(pixels[first : first + BATCH_SIZE])
    return len(pixels) / (time.perf_counter() - start)


def compare(
    variants: dict[str, bytes], card: Card, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.bool_], rounds: int
) -> list[Row]:
    """Return one row per variant; the first variant is the reference."""
    sessions = {name: BundleSession(card, network) for name, network in variants.items()}
    logits = {
        name: np.concatenate([session.logits(pixels[i : i + BATCH_SIZE]) for i in range(0, len(pixels), BATCH_SIZE)])
        for name, session in sessions.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, session in sessions.items():
            rates[name].append(measure_rate(session, pixels[:200]))
    reference = next(iter(variants))
    threshold = card.operating_points[DEFAULT_OPERATING_POINT].threshold
    return [
        Row(
            name,
            len(variants[name]) / 1e6,
            statistics.median(a / b for a, b in zip(rates[name], rates[reference], strict=True)),
            auroc(x.astype(np.float64), labels),
            float(((sigmoid(x) >= threshold) == labels).mean()),
            float(np.abs(sigmoid(x) - sigmoid(logits[reference])).max()),
        )
        for name, x in logits.items()
    ]


def meets_goal(row: Row, reference: Row) -> bool:
    """Return whether a variant is fast enough and loses little enough."""
    loss = max(reference.auroc - row.auroc, reference.accuracy - row.accuracy)
    return row.speedup >= MIN_SPEEDUP and loss <= MAX_LOSS


def to_markdown(rows: Sequence[Row], card: Card, images: int, calibration_images: int, command: str) -> str:
    """Return the rows as a Markdown table."""
    reference = rows[0]
    lines = [
        f"8-bit quantization of {card.name} ({card.network}) on {platform.machine()}: {images} validation images, ranges from"
        f" {calibration_images} training images ({__version__}). Goal: {MIN_SPEEDUP} times as fast, with AUROC and accuracy lower"
        f" by at most {MAX_LOSS:.3f}.",
        "",
        "| variant | MB | speed-up | AUROC | accuracy at `balanced` | largest change of a score | meets the goal |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        verdict = "reference" if row is reference else "yes" if meets_goal(row, reference) else "no"
        lines.append(
            f"| {row.name} | {row.megabytes:.1f} | {row.speedup:.2f} | {row.auroc:.4f} | {row.accuracy:.4f} |"
            f" {row.max_change:.3f} | {verdict} |"
        )
    return "\n".join([*lines, "", f"`{command}`", "", NOTICE]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantize by each method, compare, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder; its manifest separates validation from training images")
    parser.add_argument("--data", type=Path, required=True, help="labeled data set of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for eight_bit.md and eight_bit.json")
    parser.add_argument("--calibration-images", type=int, default=256, help="training images that determine the ranges")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)

    card, network = read_bundle(find_bundle(options.run))
    manifest = options.run / MANIFEST_FILE
    calibration, _ = load_images(options.data, "train", manifest, card, options.calibration_images)
    pixels, labels = load_images(options.data, "validation", manifest, card, 10**6)
    variants = {"32 bits": network}
    for name, method in CALIBRATION_METHODS.items():
        print(f"8 bits, {name} ranges", file=sys.stderr, flush=True)
        variants[f"8 bits, {name} ranges"] = quantize(network, calibration, method)
    rows = compare(variants, card, pixels, labels, options.rounds)
    command = shlex.join(["python", "benchmarks/eight_bit.py", *(arguments or sys.argv[1:])])
    text = to_markdown(rows, card, len(pixels), len(calibration), command)
    print(text)
    document: dict[str, Any] = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "command": command,
        "notice": NOTICE,
    }
    write_atomically(options.out / "eight_bit.json", json.dumps(document, indent=2) + "\n")
    write_atomically(options.out / "eight_bit.md", text)


if __name__ == "__main__":
    main()
