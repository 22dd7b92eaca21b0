"""How fast and in how much memory images are scored: ours, the limit, and what people use now, in one run on one machine.

- cold start: `pneumoscope predict IMAGE` as a whole process, against a script of ten lines with Pillow, numpy and ONNX Runtime,
  and where a Python with TorchXRayVision is named, against its own recipe (with random weights: they are not in its wheel).
- small images: `predict_many` on images that are not shrunk, against the bare session: all cores, prepared images in memory.
- full-size images: `predict_many`, against decoding alone and the network alone, each on all cores, one after the other.
- memory: of a process that scores many images, as it goes.

Whatever is compared takes turns; a figure is the median over the rounds, a ratio the median of the rounds' ratios.
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

from pneumoscope.bundle.card import read_bundle
from pneumoscope.core.files import write_atomically
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.model import BATCH, load_model
from pneumoscope.inference.session import BundleSession

CORES = os.cpu_count() or 1
BARE_BATCH = 32
FLOOR = """
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
# As its own documentation has it. It prints the seconds an image once the first, which warms up, is done.
XRV = """
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


def seconds(run: Callable[[], object]) -> float:
    """Of wall clock."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def turns(ways: dict[str, Callable[[], float]], rounds: int, what: str) -> dict[str, list[float]]:
    """Each way's figure in each round, the ways taking turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, run in ways.items():
            times[way].append(run())
        figures = ", ".join(f"{way} {1000 * found[-1]:.1f} ms" for way, found in times.items())
        print(f"{what}, round {number + 1}: {figures}", flush=True)
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def row(figure: str, times: dict[str, list[float]], value: float, goal: str) -> dict[str, Any]:
    """One line of the table."""
    middle = {way: statistics.median(found) for way, found in times.items()}
    return {"figure": figure, "seconds": middle, "rounds": times, "value": value, "goal": goal}


def cold_start(bundle: Path, image: Path, xrv: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        floor = Path(folder, "floor.py")
        floor.write_text(FLOOR, encoding="utf-8")
        program = Path(sys.executable).with_name("pneumoscope")

        def process(*arguments: object) -> Callable[[], float]:
            command = list(map(str, arguments))
            return lambda: seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

        ways = {
            "floor": process(sys.executable, floor, bundle / "network.onnx", image),
            "ours": process(program, "predict", "--model", bundle, image),
        }
        for run in ways.values():  # the files are in the disk's cache from here on
            run()
        times = turns(ways, rounds, "cold start")
        rows = [row("cold start / floor", times, ratio(times, "ours", "floor"), "at most 1.5")]
        if xrv:
            ways = {"ours": ways["ours"], "torchxrayvision": process(xrv, "-c", XRV, CORES, image)}
            times = turns(ways, max(rounds // 4, 2), "cold start")
            rows.append(
                row("TorchXRayVision's cold start / ours", times, ratio(times, "torchxrayvision", "ours"), "10")
            )
    return rows


def small_images(bundle: Path, images: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """Images that need no shrinking."""
    card, network = read_bundle(bundle)
    bare, model = BundleSession(card, network), load_model(bundle, threads=1)
    prepared = np.stack([preprocess(decode(image), card.preprocessing) for image in images])
    ways = {
        "bare": lambda: seconds(lambda: network_alone(bare, prepared, BARE_BATCH)) / len(images),
        "ours": lambda: seconds(lambda: list(model.predict_many(images))) / len(images),
    }
    times = turns(ways, rounds, "small images")
    return [row("small images: rate / bare session's", times, ratio(times, "bare", "ours"), "at least 0.9")]


def network_alone(session: BundleSession, prepared: npt.NDArray[np.uint8], batch: int) -> None:
    """One call after the other."""
    for start in range(0, len(prepared), batch):
        session.logits(prepared[start : start + batch])


def full_size_images(bundle: Path, images: Sequence[Path], xrv: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Images as a detector gives them."""
    card, network = read_bundle(bundle)
    single, model = BundleSession(card, network, threads=1), load_model(bundle, threads=1)
    prepared = np.stack([preprocess(decode(image), card.preprocessing) for image in images])

    def on_all_cores(work: Callable[[Any], object], items: Iterable[Any]) -> float:
        with ThreadPoolExecutor(CORES) as pool:
            return seconds(lambda: list(pool.map(work, items))) / len(images)

    def read(least_side: int) -> Callable[[], float]:
        return lambda: on_all_cores(
            lambda image: preprocess(decode(image, least_side=least_side), card.preprocessing), images
        )

    ways: dict[str, Callable[[], float]] = {
        "decode": read(2 * card.preprocessing.size),
        "decode whole": read(0),
        "network": lambda: on_all_cores(single.logits, np.array_split(prepared, len(prepared) // BATCH)),
        "ours": lambda: seconds(lambda: list(model.predict_many(images))) / len(images),
    }
    times = turns(ways, rounds, "full-size images")
    times["limit"] = [a + b for a, b in zip(times["decode"], times["network"], strict=True)]
    rows = [row("full-size images: rate / limit's", times, ratio(times, "limit", "ours"), "at least 0.9")]
    if xrv:
        some = [str(image) for image in images[:24]]

        def theirs() -> float:
            command = [str(xrv), "-c", XRV, str(CORES), some[0], *some]
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        ways = {"ours": ways["ours"], "torchxrayvision": theirs}
        times = turns(ways, max(rounds // 2, 2), "full-size images")
        rows.append(row("TorchXRayVision's time an image / ours", times, ratio(times, "torchxrayvision", "ours"), "10"))
    return rows


def memory(bundle: Path, images: Sequence[Path], count: int) -> dict[str, Any]:
    """Resident memory, MB, of a process that scores `count` images, after each tenth of them."""
    command = [str(Path(sys.executable).with_name("pneumoscope")), "predict", "-", "--json", "--model", str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        names = "".join(f"{image}\n" for image in islice(cycle(images), count)).encode()
        writer = threading.Thread(target=lambda: (process.stdin.write(names), process.stdin.close()))  # type: ignore[union-attr]
        writer.start()
        done, tenths, status = 0, list[float](), Path(f"/proc/{process.pid}/status")
        for line in process.stdout:
            done += b'"path":' in line
            if b'"path":' in line and done % max(count // 10, 1) == 0:
                fields = dict(part.split(":", 1) for part in status.read_text().splitlines())
                tenths.append(int(fields["VmRSS"].split()[0]) / 1024)
                peak = int(fields["VmHWM"].split()[0]) / 1024
                print(f"memory: {done} images, {tenths[-1]:.0f} MB, peak {peak:.0f} MB", flush=True)
        writer.join()
    return {"figure": f"peak MB while scoring {count:,} images", "tenths": tenths, "value": peak, "goal": "at most 400"}


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown for people."""
    lines = [
        f"InferenceQueue with {about['bundle']} on {about['processor']}, {about['cores']} cores; Python {about['python']},"
        f" {about['rounds']} rounds.",
        "",
        "| figure | measured | goal | medians |",
        "| --- | --- | --- | --- |",
    ]
    for found in rows:
        middle = ", ".join(f"{way} {1000 * value:.1f} ms" for way, value in found.get("seconds", {}).items())
        middle = middle or "after each tenth: " + ", ".join(f"{value:.0f}" for value in found["tenths"])
        lines.append(f"| {found['figure']} | {found['value']:.2f} | {found['goal']} | {middle} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder of small images, JPEG")
    parser.add_argument("--originals", type=Path, required=True, help="folder of full-size images, JPEG")
    parser.add_argument("--torchxrayvision", type=Path, help="a Python that can import it")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--images", type=int, default=256, help="scored in each round")
    parser.add_argument("--memory-images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="folder for predict.json and predict.md")
    given = parser.parse_args()
    small = sorted(given.data.rglob("*.jpeg"))
    large = sorted(given.originals.rglob("*.jpeg"))
    some = small[:: max(len(small) // given.images, 1)][: given.images]
    rows = [
        *cold_start(given.model, small[0], given.torchxrayvision, given.rounds),
        *small_images(given.model, some, given.rounds),
        *full_size_images(given.model, large[: given.images], given.torchxrayvision, given.rounds),
        memory(given.model, small, given.memory_images),
    ]
    card = read_bundle(given.model)[0]
    about = {
        "bundle": f"{card.name} ({card.network}, {card.onnx_bytes / 1e6:.1f} MB)",
        "onnx_sha256": card.onnx_sha256,
        "processor": platform.processor() or platform.machine(),
        "cores": CORES,
        "system": platform.platform(),
        "python": platform.python_version(),
        "rounds": given.rounds,
    }
    text = table(rows, about)
    print(f"\n{text}")
    if given.out:
        write_atomically(given.out / "predict.json", json.dumps({**about, "rows": rows}, indent=2) + "\n")
        write_atomically(given.out / "predict.md", text)


if __name__ == "__main__":
    main()
