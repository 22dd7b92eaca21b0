"""Whether a bundle's heatmaps show what its network uses: two questions that a pretty map can fail.

- Deletion and insertion (Petsiuk 2018): pixels are taken from an image, or given to a blurred one, in the order of the map, what
  speaks most for the network's answer first. The area under the score of that answer is to be low for deletion and high for
  insertion. Beside it stand random maps of the same smoothness: the image's own map with the phases of its spectrum
  drawn anew, so that they differ in where they point and in nothing else.
- Randomised weights (Adebayo 2018): a map that stays as it was when the weights have lost all meaning never showed what was
  learned. The weights of the last layer, of the last half of the layers and of all are shuffled, each tensor within itself, and
  the maps are compared place by place with the trained network's. Beside it: the maps of another image.

It asks the ONNX file alone, so any bundle can be judged. By default it looks at validation images: the test images belong to
`pneumoscope evaluate` and its ledger.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image, ImageFilter
from scipy.stats import spearmanr

from pneumoscope import __version__
from pneumoscope.bundle.card import Card, read_bundle
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.results import Interval
from pneumoscope.data.manifest import LABELS, LabelledImage
from pneumoscope.evaluation.selection import select_images
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.saliency import resize_to_image
from pneumoscope.inference.session import BundleSession, Outputs, sigmoid
from pneumoscope.runs.run_folder import MANIFEST_FILE, find_bundle
from pneumoscope.statistics.intervals import patient_bootstrap

STEPS = 16  # equal shares of the pixels
RANDOM = 3  # random maps an image
SHUFFLES = 3  # of the weights, for each share of the layers
BLUR = 1 / 8  # radius of what stands in the place of a pixel that is taken away, of the image's side
BATCH = 32
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
FloatArray = npt.NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images, prepared, and what the network says of them."""

    images: tuple[LabelledImage, ...]
    pixels: npt.NDArray[np.uint8]
    outputs: Outputs

    def interval(self, values: Sequence[float] | FloatArray, seed: int) -> Interval:
        """Mean over the images that have the value, with an interval over draws of patients."""
        found = np.asarray(values, dtype=np.float64)
        kept = np.flatnonzero(np.isfinite(found))
        if not len(kept):
            return Interval(
                None, None, None, "patient bootstrap", 0, seed=seed, reason="maps without any difference in them"
            )
        labels = [self.images[i].label == LABELS[1] for i in kept]
        return patient_bootstrap(
            lambda x, _, weights: weights @ x / weights.sum(1),
            found[kept], labels, [self.images[i].patient for i in kept], seed=seed,
        )  # fmt: skip


def draw_sample(
    session: BundleSession, root: Path, images: Sequence[LabelledImage], wanted: int, rng: np.random.Generator
) -> Sample:
    """As many normal images as pneumonias, half of `wanted` each or as many as there are."""
    of_label = [[image for image in images if image.label == label] for label in LABELS]
    each = min(math.ceil(wanted / 2), *map(len, of_label))
    drawn = tuple(found[i] for found in of_label for i in sorted(rng.permutation(len(found))[:each]))
    pixels = np.stack([preprocess(decode(root / image.path), session.card.preprocessing) for image in drawn])
    return Sample(drawn, pixels, explain(session, pixels))


def explain(session: BundleSession, pixels: npt.NDArray[np.uint8]) -> Outputs:
    """Outputs of many images."""
    parts = [session.outputs(pixels[i : i + BATCH], heatmaps=True) for i in range(0, len(pixels), BATCH)]
    given = [field.name for field in dataclasses.fields(Outputs) if getattr(parts[0], field.name) is not None]
    return Outputs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in given})


# --- deletion and insertion ------------------------------------------------------------------------------------------


def same_spectrum(heatmap: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A random map with the power spectrum and the mean of another: the phases are those of white noise."""
    noise = np.fft.rfft2(rng.normal(size=heatmap.shape))
    phases = noise / np.abs(noise)
    phases[0, 0] = 1
    return np.fft.irfft2(np.fft.rfft2(heatmap) * phases, s=heatmap.shape)


def areas(session: BundleSession, image: npt.NDArray[np.uint8], heatmap: FloatArray, sign: int) -> tuple[float, float]:
    """Areas under the score of what the network says, for deletion and for insertion; 0 to 1.

    Args:
        image: prepared, shape (size, size).
        heatmap: shape (rows, columns).
        sign: 1 where the network says pneumonia, -1 where it says normal.
    """
    size = len(image)
    importance = sign * resize_to_image(heatmap.astype(np.float32), size, size, "squash")
    rank = np.empty(size * size, int)
    rank[np.argsort(-importance, axis=None, kind="stable")] = np.arange(size * size)
    shares = np.linspace(0, 1, STEPS + 1)
    taken = rank.reshape(1, size, size) < shares[:, None, None] * size * size
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(BLUR * size)))
    both = np.concatenate([np.where(taken, blurred, image), np.where(taken, image, blurred)])
    logits = np.concatenate([session.logits(both[i : i + BATCH]) for i in range(0, len(both), BATCH)])
    deletion, insertion = sigmoid(sign * logits).reshape(2, -1)
    return float(np.trapezoid(deletion, shares)), float(np.trapezoid(insertion, shares))


def faithfulness(session: BundleSession, sample: Sample, rng: np.random.Generator, seed: int) -> dict[str, Any]:
    """Areas of the network's maps and of random ones, and their differences in the direction that is better."""
    signs = np.where(sample.outputs.logit >= 0, 1, -1)
    own, random = [], []
    images = list(zip(sample.pixels, sample.outputs.heatmap, signs, strict=True))
    for image, heatmap, sign in shown(images, "deletion and insertion"):
        own.append(areas(session, image, heatmap, sign))
        drawn = [areas(session, image, same_spectrum(heatmap, rng), sign) for _ in range(RANDOM)]
        random.append(np.mean(drawn, axis=0))
    found: dict[str, Any] = {}
    for column, (name, better) in enumerate((("deletion", -1), ("insertion", 1))):
        mine, others = np.array(own)[:, column], np.array(random)[:, column]
        found[name] = {
            "heatmap": sample.interval(mine, seed),
            "random": sample.interval(others, seed),
            "better_by": sample.interval(better * (mine - others), seed),
            "images_better": float(np.mean(better * (mine - others) > 0)),
        }
    return found


# --- randomised weights ----------------------------------------------------------------------------------------------


def shuffled(network: bytes, share: float, rng: np.random.Generator) -> tuple[bytes, int]:
    """The network with the weights and biases of its last layers shuffled, each tensor within itself.

    Args:
        share: of the layers with weights, counted from the logit; 0 is the last one alone.
    Returns:
        The network's bytes, and how many layers were shuffled.
    """
    model = onnx.load_from_string(network)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers: list[list[str]] = []
    known: set[str] = set()
    for node in _behind("logit", model.graph):
        own = [name for name in node.input if name in tensors and name not in known]
        if node.op_type in WEIGHTED and own:  # the gradient's products take weights of layers that are known already
            layers.append(own)
            known.update(own)
    if not layers:
        raise UsageError("the network has no layer with weights to shuffle")
    count = max(1, round(share * len(layers)))
    for name in (name for layer in layers[-count:] for name in layer):
        values = onnx.numpy_helper.to_array(tensors[name])
        new = rng.permutation(values.flatten()).reshape(values.shape)
        # The gradient may have a transposed copy of its own.
        for copy, tensor in tensors.items():
            if copy != name and values.ndim == 2 and np.array_equal(onnx.numpy_helper.to_array(tensor), values.T):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(new.T), copy))
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(new, name))
    return model.SerializeToString(), count


def _behind(output: str, graph: Any) -> list[Any]:
    """The nodes that an output hangs on, in their order: what looks at an image beside the network is not of it."""
    needed, found = {output}, []
    for node in reversed(graph.node):  # a node stands behind those that make its inputs
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def likeness(a: FloatArray, b: FloatArray) -> float:
    """Rank correlation of two maps place by place; NaN where one is the same everywhere."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b, axis=None).statistic)


def collapse(card: Card, network: bytes, sample: Sample, rng: np.random.Generator, seed: int) -> list[dict[str, Any]]:
    """A row for each share of the layers that was shuffled, and one for the maps of another image."""
    maps = sample.outputs.heatmap

    def row(name: str, others: Iterable[FloatArray], layers: int) -> dict[str, Any]:
        others = list(others)
        return {
            "name": name,
            "layers": layers,
            "signed": sample.interval(
                _mean([[likeness(a, b) for a, b in zip(maps, o, strict=True)] for o in others]), seed
            ),
            "absolute": sample.interval(
                _mean([[likeness(abs(a), abs(b)) for a, b in zip(maps, o, strict=True)] for o in others]), seed
            ),
        }

    rows = []
    for name, share in (("last layer", 0.0), ("last half of the layers", 0.5), ("all layers", 1.0)):
        found, layers = [], 0
        for _ in shown(range(SHUFFLES), f"weights shuffled, {name}"):
            content, layers = shuffled(network, share, rng)
            found.append(explain(BundleSession(card, content), sample.pixels).heatmap)
        rows.append(row(name, found, layers))
    # The images lie label by label: half of them further is an image of the other label.
    rows.append(row("none, but the map of an image of the other label", [np.roll(maps, len(maps) // 2, axis=0)], 0))
    return rows


def _mean(values: Sequence[Sequence[float]]) -> FloatArray:
    table = np.array(values)
    seen = np.isfinite(table).sum(0)
    return np.where(seen > 0, np.nansum(table, axis=0) / np.maximum(seen, 1), np.nan)


# --- table -----------------------------------------------------------------------------------------------------------


def shown(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with a line on standard error now and then."""
    for i, item in enumerate(items):
        if i % max(1, len(items) // 5) == 0:
            print(f"{what}: {i} of {len(items)}", file=sys.stderr, flush=True)
        yield item


def words(interval: Interval) -> str:
    """0.123 [0.100, 0.150]."""
    if interval.value is None:
        return f"none: {interval.reason}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def table(found: dict[str, Any]) -> str:
    """Markdown for people."""
    lines = [
        f"Heatmaps of {found['bundle']} ({found['network']}, {found['places']} places) on {found['n']} {found['split']} images of"
        f" {found['patients']} patients, half of them normal; means with 95% intervals over patients, seed {found['seed']}.",
        "",
        f"Areas under the score of what the network says; {RANDOM} random maps an image with the spectrum of its own.",
        "",
        "| curve | heatmap | random map | better by | images where it is better |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, about in (("deletion", "lower is better"), ("insertion", "higher is better")):
        row = found["faithfulness"][name]
        lines.append(
            f"| {name}, {about} | {words(row['heatmap'])} | {words(row['random'])} | {words(row['better_by'])}"
            f" | {row['images_better']:.0%} |"
        )
    lines += [
        "",
        f"Rank correlation with the trained network's maps; near 0 is right. Means of {SHUFFLES} shuffles.",
        "",
        "| shuffled | layers | correlation | of magnitudes | images |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['name']} | {row['layers']} | {words(row['signed'])} | {words(row['absolute'])} | {row['signed'].n} |"
        for row in found["collapse"]
    ]
    return "\n".join([*lines, "", f"`{found['command']}`", "", NOTICE, ""])


def measure(target: Path, data: Path, split: str, images: int, seed: int) -> dict[str, Any]:
    """Everything that is written."""
    card, network = read_bundle(find_bundle(target))
    session = BundleSession(card, network)
    root, found = select_images(data, split, target / MANIFEST_FILE)
    rng = np.random.default_rng(seed)
    sample = draw_sample(session, root, found, images, rng)
    rows, columns = sample.outputs.heatmap.shape[1:]
    if rows * columns < 4:
        raise UsageError(f"a heatmap of {rows} x {columns} places has no order to judge", hint="Take larger images")
    return {
        "bundle": card.name,
        "network": card.network,
        "onnx_sha256": card.onnx_sha256,
        "places": f"{rows} x {columns}",
        "split": split,
        "n": len(sample.images),
        "patients": len({image.patient or image.path for image in sample.images}),
        "seed": seed,
        "steps": STEPS,
        "faithfulness": faithfulness(session, sample, rng, seed),
        "collapse": collapse(card, network, sample, rng, seed),
        "version": __version__,
        "system": platform.platform(),
        "notice": NOTICE,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="a run's folder, or a bundle")
    parser.add_argument(
        "--data", type=Path, required=True, help="the images: a folder, or a manifest for a bundle alone"
    )
    parser.add_argument("--split", default="validation")
    parser.add_argument("--images", type=int, default=100, help="how many are drawn, half of each label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="folder for heatmaps.json and heatmaps.md; nothing is written without it"
    )
    given = parser.parse_args(arguments)
    found = measure(given.target, given.data, given.split, given.images, given.seed)
    found["command"] = shlex.join(
        ["python", "benchmarks/heatmaps.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    text = table(found)
    print(text)
    if given.out:
        plain = json.dumps(found, indent=2, default=dataclasses.asdict, allow_nan=False)
        write_atomically(given.out / "heatmaps.json", plain + "\n")
        write_atomically(given.out / "heatmaps.md", text)


if __name__ == "__main__":
    main()
