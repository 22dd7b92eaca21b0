"""Measure the speed and the memory of inference, compared with lower bounds and with TorchXRayVision on the same machine.

- Cold start: `pneumoscope predict IMAGE` as a process, against a script of ten lines with Pillow, numpy and ONNX Runtime, and, if
  a Python with TorchXRayVision is given, against its documented recipe (with random weights, which are not in its wheel).
- Small images: `predict_many` on images that need no downsampling, against the bare session on preprocessed images in memory.
- Full-size images: `predict_many`, against decoding alone plus the network alone, each on all cores.
- Memory: of a process that scores many images, after each tenth of them.

Variants take turns; a time is the median over the rounds, a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.core.files import write_atomically
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.model import BATCH_SIZE, load_model
from pneumoscope.inference.session import BundleSession

CORES = os.cpu_count() or 1
BARE_BATCH_SIZE = 32
MINIMAL_SCRIPT = """
import sys
import numpy as np
import onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
side = session.get_inputs()[0].shape[1]
image = Image.open(sys.argv[2]).convert("L").resize((side, side), Image.Resampling.BILINEAR)
logit = session.run(["logit"], {"image": np.asarray(image)[None]})[0]
print(1 / (1 + np.exp(-logit)))
"""
# As in the documentation of TorchXRayVision. Prints the seconds per image after the first one, which warms up.
TORCHXRAYVISION_SCRIPT = """
import sys, time
import skimage.io, torch, torchvision, torchxrayvision as xrv
torch.set_num_threads(int(sys.argv[1]))
model = xrv.models.DenseNet(weights=None, num_classes=18).eval()
transform = torchvision.transforms.Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)])
def score(path):
    pixels = xrv.datasets.normalize(skimage.io.imread(path), 255)
    pixels = pixels if pixels.ndim == 2 else pixels[:, :, 0]
    with torch.inference_mode():
        return model(torch.from_numpy(transform(pixels[None]))[None])
score(sys.argv[2])
started = time.perf_counter()
for path in sys.argv[3:]:
    score(path)
print((time.perf_counter() - started) / max(len(sys.argv) - 3, 1))
"""


def time_call(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(variants: dict[str, Callable[[], float]], rounds: int, name: str) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round."""
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, measure in variants.items():
            times[variant].append(measure())
        latest = ", ".join(f"{variant} {1000 * seconds[-1]:.1f} ms" for variant, seconds in times.items())
        print(f"{name}, round {number + 1}: {latest}", flush=True)
    return times


def median_ratio(times: dict[str, list[float]], numerator: str, denominator: str) -> float:
    """Return the median over the rounds of the ratio of two variants."""
    return statistics.median(a / b for a, b in zip(times[numerator], times[denominator], strict=True))


def make_row(name: str, times: dict[str, list[float]], value: float, goal: str) -> dict[str, Any]:
    """Return one row of the table."""
    medians = {variant: statistics.median(seconds) for variant, seconds in times.items()}
    return {"name": name, "seconds": medians, "rounds": times, "value": value, "goal": goal}


def measure_cold_start(bundle: Path, image: Path, torchxrayvision: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of whole processes that score one image."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "minimal.py")
        script.write_text(MINIMAL_SCRIPT, encoding="utf-8")
        program = Path(sys.executable).with_name("pneumoscope")

        def process(*arguments: object) -> Callable[[], float]:
            command = list(map(str, arguments))
            return lambda: time_call(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

        variants = {
            "minimal script": process(sys.executable, script, bundle / "network.onnx", image),
            "pneumoscope": process(program, "predict", "--model", bundle, image),
        }
        for measure in variants.values():  # fills the disk cache
            measure()
        times = take_turns(variants, rounds, "cold start")
        ratio = median_ratio(times, "pneumoscope", "minimal script")
        rows = [make_row("cold start / minimal script", times, ratio, "at most 1.5")]
        if torchxrayvision:
            variants = {
                "pneumoscope": variants["pneumoscope"],
                "torchxrayvision": process(torchxrayvision, "-c", TORCHXRAYVISION_SCRIPT, CORES, image),
            }
            times = take_turns(variants, max(rounds // 4, 2), "cold start")
            ratio = median_ratio(times, "torchxrayvision", "pneumoscope")
            rows.append(make_row("cold start of TorchXRayVision / pneumoscope", times, ratio, "at least 10"))
    return rows


def run_network(session: BundleSession, pixels: npt.NDArray[np.uint8], batch_size: int) -> None:
    """Score preprocessed images, one batch after the other."""
    for first in range(0, len(pixels), batch_size):
        session.logits(pixels[first : first + batch_size])


def measure_small_images(bundle: Path, images: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """Return the rows of images that need no downsampling."""
    card, network = read_bundle(bundle)
    session, model = BundleSession(card, network), load_model(bundle, threads=1)
    pixels = np.stack([preprocess(decode(image), card.preprocessing) for image in images])
    variants = {
        "bare session": lambda: time_call(lambda: run_network(session, pixels, BARE_BATCH_SIZE)) / len(images),
        "pneumoscope": lambda: time_call(lambda: list(model.predict_many(images))) / len(images),
    }
    times = take_turns(variants, rounds, "small images")
    ratio = median_ratio(times, "bare session", "pneumoscope")
    return [make_row("small images: rate / bare session", times, ratio, "at least 0.9")]


def measure_full_size_images(
    bundle: Path, images: Sequence[Path], torchxrayvision: Path | None, rounds: int
) -> list[dict[str, Any]]:
    """Return the rows of images at the resolution of a detector."""
    card, network = read_bundle(bundle)
    single_thread, model = BundleSession(card, network, threads=1), load_model(bundle, threads=1)
    pixels = np.stack([preprocess(decode(image), card.preprocessing) for image in images])

    def on_all_cores(work: Callable[[Any], object], items: Iterable[Any]) -> float:
        with ThreadPoolExecutor(CORES) as pool:
            return time_call(lambda: list(pool.map(work, items))) / len(images)

    def decode_all(min_side: int) -> Callable[[], float]:
        return lambda: on_all_cores(
            lambda image: preprocess(decode(image, min_side=min_side), card.preprocessing), images
        )

    variants: dict[str, Callable[[], float]] = {
        "decoding": decode_all(2 * card.preprocessing.size),
        "decoding at full size": decode_all(0),
        "network": lambda: on_all_cores(single_thread.logits, np.array_split(pixels, len(pixels) // BATCH_SIZE)),
        "pneumoscope": lambda: time_call(lambda: list(model.predict_many(images))) / len(images),
    }
    times = take_turns(variants, rounds, "full-size images")
    times["lower bound"] = [a + b for a, b in zip(times["decoding"], times["network"], strict=True)]
    ratio = median_ratio(times, "lower bound", "pneumoscope")
    rows = [make_row("full-size images: rate / decoding and network", times, ratio, "at least 0.9")]
    if torchxrayvision:
        sample = [str(image) for image in images[:24]]

        def run_torchxrayvision() -> float:
            command = [str(torchxrayvision), "-c", TORCHXRAYVISION_SCRIPT, str(CORES), sample[0], *sample]
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        variants = {"pneumoscope": variants["pneumoscope"], "torchxrayvision": run_torchxrayvision}
        times = take_turns(variants, max(rounds // 2, 2), "full-size images")
        ratio = median_ratio(times, "torchxrayvision", "pneumoscope")
        rows.append(make_row("time per image of TorchXRayVision / pneumoscope", times, ratio, "at least 10"))
    return rows


def measure_memory(bundle: Path, images: Sequence[Path], count: int) -> dict[str, Any]:
    """Return the row of the resident memory in MB of a process that scores `count` images, after each tenth."""
    command = [str(Path(sys.executable).with_name("pneumoscope")), "predict", "-", "--json", "--model", str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        names = "".join(f"{image}\n" for image in islice(cycle(images), count)).encode()
        writer = threading.Thread(target=lambda: (process.stdin.write(names), process.stdin.close()))  # type: ignore[union-attr]
        writer.start()
        done, tenths, peak, status = 0, list[float](), 0.0, Path(f"/proc/{process.pid}/status")
        for line in process.stdout:
            if b'"path":' not in line:
                continue
            done += 1
            if done % max(count // 10, 1) == 0:
                fields = dict(part.split(":", 1) for part in status.read_text().splitlines())
                tenths.append(int(fields["VmRSS"].split()[0]) / 1024)
                peak = int(fields["VmHWM"].split()[0]) / 1024
                print(f"memory: {done} images, {tenths[-1]:.0f} MB, peak {peak:.0f} MB", flush=True)
        writer.join()
    name = f"peak memory in MB while scoring {count:,} images"
    return {"name": name, "tenths": tenths, "value": peak, "goal": "at most 400"}


def to_markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        f"Inference with {facts['bundle']} on {facts['processor']}, {facts['cores']} cores; Python {facts['python']},"
        f" {facts['rounds']} rounds.",
        "",
        "| measurement | value | goal | medians |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        medians = ", ".join(f"{variant} {1000 * value:.1f} ms" for variant, value in row.get("seconds", {}).items())
        medians = medians or "after each tenth: " + ", ".join(f"{value:.0f}" for value in row["tenths"])
        lines.append(f"| {row['name']} | {row['value']:.2f} | {row['goal']} | {medians} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print; write if --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder of small JPEG images")
    parser.add_argument("--originals", type=Path, required=True, help="folder of full-size JPEG images")
    parser.add_argument("--torchxrayvision", type=Path, help="Python interpreter that can import torchxrayvision")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--images", type=int, default=256, help="images per round")
    parser.add_argument("--memory-images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="folder for predict.json and predict.md")
    options = parser.parse_args()
    small = sorted(options.data.rglob("*.jpeg"))
    full_size = sorted(options.originals.rglob("*.jpeg"))
    sample = small[:: max(len(small) // options.images, 1)][: options.images]
    rows = [
        *measure_cold_start(options.model, small[0], options.torchxrayvision, options.rounds),
        *measure_small_images(options.model, sample, options.rounds),
        *measure_full_size_images(options.model, full_size[: options.images], options.torchxrayvision, options.rounds),
        measure_memory(options.model, small, options.memory_images),
    ]
    card = read_bundle(options.model)[0]
    facts = {
        "bundle": f"{card.name} ({card.network}, {card.onnx_bytes / 1e6:.1f} MB)",
        "onnx_sha256": card.onnx_sha256,
        "processor": platform.processor() or platform.machine(),
        "cores": CORES,
        "system": platform.platform(),
        "python": platform.python_version(),
        "rounds": options.rounds,
    }
    text = to_markdown(rows, facts)
    print(f"\n{text}")
    if options.out:
        write_atomically(options.out / "predict.json", json.dumps({**facts, "rows": rows}, indent=2) + "\n")
        write_atomically(options.out / "predict.md", text)


if __name__ == "__main__":
    main()
