"""Whether a bundle's network in 8 bits is worth shipping: how much faster it is, and what it loses on validation images.

ONNX Runtime's static quantisation, weights a scale a channel, activations a scale a tensor, whose ranges are read off training
images. What looks at images beside the network, and the layer that the logit comes from, can be left in 32 bits. The goal: 1.4
times as fast, accuracy and AUROC lower by 0.3 points at most. Sessions take turns; a ratio is the median of the rounds' ratios.
The test images are not touched: they belong to `pneumoscope evaluate` and its ledger.
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
from pneumoscope.bundle.card import Card, read_bundle
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.evaluation.selection import select_images
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT
from pneumoscope.inference.session import BundleSession, sigmoid
from pneumoscope.runs.run_folder import MANIFEST_FILE, find_bundle
from pneumoscope.statistics.roc import auroc

FASTER, LOSS = 1.4, 0.003
BATCH = 4  # as `session.model.BATCH`
METHODS = {
    "least and greatest": quantization.CalibrationMethod.MinMax,
    "entropy": quantization.CalibrationMethod.Entropy,
    "99.99% of values": quantization.CalibrationMethod.Percentile,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant. `faster` is the median over rounds of its rate over that of 32 bits; the rest on validation images."""

    name: str
    megabytes: float
    faster: float
    auroc: float
    accuracy: float
    largest_change: float


class Images(quantization.CalibrationDataReader):
    """Prepared images for the ranges of activations."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(np.array_split(pixels, max(1, len(pixels) // BATCH)))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """One batch, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def quantised(content: bytes, pixels: npt.NDArray[np.uint8], method: quantization.CalibrationMethod) -> bytes:
    """The same network in 8 bits, its convolutions and products that the logit hangs on."""
    with tempfile.TemporaryDirectory() as folder:
        whole, ready, made = (Path(folder) / f"{name}.onnx" for name in ("whole", "ready", "made"))
        whole.write_bytes(content)
        quant_pre_process(str(whole), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(made),
            Images(pixels),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=method,
            nodes_to_quantize=behind_the_logit(onnx.load(str(ready))),
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        return made.read_bytes()


def behind_the_logit(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that the logit hangs on: what is costly. The products behind them are few, and sensitive."""
    makers = {output: node for node in model.graph.node for output in node.output}
    waiting, seen = ["logit"], set()
    found = []
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.output[0] in seen:  # by what it makes: it need not have a name
            continue
        seen.add(node.output[0])
        waiting += node.input
        if node.op_type == "Conv":
            found.append(node.name)
    return found


def images(
    data: Path, split: str, manifest: Path, card: Card, most: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Prepared images of a split, evenly from all over it, and whether they show pneumonia."""
    root, chosen = select_images(data, split, manifest)
    places = np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(int))
    pixels = np.stack([preprocess(decode(root / chosen[i].path), card.preprocessing) for i in places])
    return pixels, np.array([chosen[i].positive for i in places])


def rate(session: BundleSession, pixels: npt.NDArray[np.uint8]) -> float:
    """Images a second, in batches as `predict` makes them."""
    start = time.perf_counter()
    for first in range(0, len(pixels), BATCH):
        session.outputs(pixels[first : first + BATCH])
    return len(pixels) / (time.perf_counter() - start)


def compare(
    variants: dict[str, bytes], card: Card, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.bool_], rounds: int
) -> list[Row]:
    """Every variant beside the first."""
    predictors = {name: BundleSession(card, content) for name, content in variants.items()}
    logits = {
        name: np.concatenate([each.logits(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])
        for name, each in predictors.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, session in predictors.items():
            rates[name].append(rate(session, pixels[:200]))
    first = next(iter(variants))
    threshold = card.operating_points[DEFAULT_OPERATING_POINT].threshold
    return [
        Row(
            name,
            len(variants[name]) / 1e6,
            statistics.median(own / whole for own, whole in zip(rates[name], rates[first], strict=True)),
            auroc(found.astype(np.float64), labels),
            float(((sigmoid(found) >= threshold) == labels).mean()),
            float(np.abs(sigmoid(found) - sigmoid(logits[first])).max()),
        )
        for name, found in logits.items()
    ]


def table(rows: Sequence[Row], card: Card, n: int, ranges: int, command: str) -> str:
    """For a person."""
    whole = rows[0]
    lines = [
        f"{card.name} ({card.network}) in 8 bits on {platform.machine()}, {n} validation images, ranges of {ranges} training images"
        f" ({__version__}). It ships where it is {FASTER} times as fast and loses at most {LOSS:.3f} of AUROC and of accuracy.",
        "",
        "| variant | MB | times as fast | AUROC | accuracy at `balanced` | largest change of a score | ships |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kept = min(row.auroc - whole.auroc, row.accuracy - whole.accuracy) >= -LOSS
        ships = "as it is" if row is whole else "yes" if row.faster >= FASTER and kept else "no"
        lines.append(
            f"| {row.name} | {row.megabytes:.1f} | {row.faster:.2f} | {row.auroc:.4f} | {row.accuracy:.4f} |"
            f" {row.largest_change:.3f} | {ships} |"
        )
    return "\n".join([*lines, "", f"`{command}`", "", NOTICE]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantise in each way, compare, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run: its manifest tells validation images from training images")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for eight_bit.md and .json")
    parser.add_argument("--ranges", type=int, default=256, help="training images that ranges are read off")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)

    card, content = read_bundle(find_bundle(options.model))
    manifest = options.model / MANIFEST_FILE
    ranges, _ = images(options.data, "train", manifest, card, options.ranges)
    pixels, labels = images(options.data, "validation", manifest, card, 10**6)
    variants = {"32 bits": content}
    for name, method in METHODS.items():
        print(f"8 bits, ranges by {name}", file=sys.stderr, flush=True)
        variants[f"8 bits, ranges by {name}"] = quantised(content, ranges, method)
    rows = compare(variants, card, pixels, labels, options.rounds)
    command = shlex.join(["python", "benchmarks/eight_bit.py", *(arguments or sys.argv[1:])])
    text = table(rows, card, len(pixels), len(ranges), command)
    print(text)
    found: dict[str, Any] = {"rows": [dataclasses.asdict(row) for row in rows], "command": command, "notice": NOTICE}
    write_atomically(options.out / "eight_bit.json", json.dumps(found, indent=2) + "\n")
    write_atomically(options.out / "eight_bit.md", text)


if __name__ == "__main__":
    main()
