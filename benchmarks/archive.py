"""Measure `pneumoscope archive` beside `predict`, Ray Data, TorchXRayVision, its lower bound, and a million rows.

- speed: an archive on the local engine and on Ray, `predict_many`, the same job in plain Ray Data, a loop of TorchXRayVision
  (another network, with random weights, which are not in its wheel), and the lower bound, which is decoding alone plus the
  network alone, each on all cores, on the same images. Ray is started beforehand, on this machine; the processes and models of
  its workers are started within its times, and compared with those of an archive that count loading the model. Of
  TorchXRayVision, the start of the process and of the model is not counted.
- engines: time for each shard whose scoring is replaced by a stored result, which is then written, flushed, renamed and entered.
- rows: listing, scoring with stored results, resuming and verifying an archive of 10,000 and of 1,000,000 rows. The source
  is a list of names, and stored results replace decoding and network: these are times and memory of the bookkeeping alone.

Variants take turns; a time is the median over the rounds, a ratio the median of the rounds' ratios. Parts that are not chosen
keep their earlier results.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import resource
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pneumoscope.archive import score as archive_score
from pneumoscope.archive.archive_folder import SHARD_SIZE
from pneumoscope.archive.listing import ListedShard
from pneumoscope.archive.readers import LocalReader, SourceImage
from pneumoscope.archive.score import score_archive
from pneumoscope.archive.scoring import ShardResult, current_runtime, score_shard
from pneumoscope.archive.sources import Source, open_source
from pneumoscope.archive.table import build_row, write_table
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.files import write_atomically
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.model import BATCH_SIZE, load_model
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import find_bundle

CORES = os.cpu_count() or 1
MEGABYTE = 2**20
STUB_SHARDS = 200


def time_call(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# --- speed ---------------------------------------------------------------------------------------------------------------

SHARD = 12  # images, so that few images are divided among 1, 2 and 3 workers without rest
WORKERS = (1, 2)
# The job of a shard, as a user of Ray Data would write it.
RAY_DATA_SCRIPT = """
import sys, time
import ray
from pneumoscope.inference.model import BATCH_SIZE, load_model

class Score:
    def __init__(self):
        self.model = load_model(threads=1, isolated=True)
    def __call__(self, batch):
        paths, rows = list(batch["path"]), []
        for start in range(0, len(paths), BATCH_SIZE):
            part = paths[start : start + BATCH_SIZE]
            contents = [open(path, "rb").read() for path in part]
            rows += zip(part, self.model.score_batch(contents))
        predictions = [scored.prediction for _, scored in rows]
        return {
            "path": [path for path, _ in rows],
            "decision": [each.decision for each in predictions],
            "probability": [each.probability for each in predictions],
        }

address, workers, shard, out, *paths = sys.argv[1:]
began = time.perf_counter()
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
images = ray.data.from_items([{"path": path} for path in paths]).repartition(-(-len(paths) // int(shard)))
actors = ray.data.ActorPoolStrategy(size=int(workers))
images.map_batches(Score, batch_size=int(shard), compute=actors, num_cpus=1).write_parquet(out)
print(time.perf_counter() - began)
"""
# As in the documentation of TorchXRayVision, with the data loader of PyTorch.
TORCHXRAYVISION_SCRIPT = """
import sys, time
import skimage.io, torch, torchvision, torchxrayvision as xrv
workers, *paths = sys.argv[1:]
torch.set_num_threads(int(workers))
model = xrv.models.DenseNet(weights=None, num_classes=18).eval()
transform = torchvision.transforms.Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)])

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return len(paths)
    def __getitem__(self, number):
        pixels = xrv.datasets.normalize(skimage.io.imread(paths[number]), 255)
        pixels = pixels if pixels.ndim == 2 else pixels[:, :, 0]
        return torch.from_numpy(transform(pixels[None]))

with torch.inference_mode():
    model(torch.zeros(1, 1, 224, 224))
    began = time.perf_counter()
    for batch in torch.utils.data.DataLoader(Images(), batch_size=2, num_workers=int(workers)):
        model(batch)
print(time.perf_counter() - began)
"""


def measure_speed(images: list[Path], rounds: int, torchxrayvision: Path | None) -> dict[str, Any]:
    """Return the seconds of each variant in each round, and ratios of images per second."""
    paths = list(map(str, images))
    model = load_model(threads=1, isolated=True)
    session = BundleSession.load(find_bundle(), threads=1)
    for _ in model.predict_many(paths[:16]):  # starts the worker processes
        pass
    with tempfile.TemporaryDirectory() as name, ray_on_this_machine() as address:
        listed = Path(name) / "images.txt"
        listed.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        variants: dict[str, Callable[[], float]] = {
            "decode": lambda: time_call(lambda: decode_all(paths, session)),
            "network": lambda: time_call(lambda: run_network(session, len(paths))),
            "predict": lambda: time_call(lambda: list(model.predict_many(paths))),
            "archive": lambda: run_archive(listed),
            "archive, heatmaps": lambda: run_archive(listed, heatmaps=True),
        }
        for n in WORKERS:
            variants |= {
                f"predict, {n}": lambda n=n: time_call(lambda: list(model.predict_many(paths, workers=n))),
                f"archive, {n}": lambda n=n: run_archive(listed, workers=n),
                f"archive with loading, {n}": lambda n=n: run_archive(listed, loading=True, workers=n),
                f"archive on Ray with loading, {n}": lambda n=n: run_archive(
                    listed, loading=True, workers=n, engine="ray", address=address
                ),
                f"Ray Data, {n}": lambda n=n: run_ray_data(paths, n, address),
            }
            if torchxrayvision:
                variants[f"TorchXRayVision, {n}"] = lambda n=n: run_script(
                    torchxrayvision, TORCHXRAYVISION_SCRIPT, [str(n), *paths]
                )
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds):
            for variant, measure in variants.items():
                seconds[variant].append(measure())
            print(
                f"round {number + 1}: " + ", ".join(f"{name} {times[-1]:.1f} s" for name, times in seconds.items()),
                flush=True,
            )
    model.close()
    bound = [a + b for a, b in zip(seconds["decode"], seconds["network"], strict=True)]
    ratios = {
        "archive / lower bound": ratio(bound, seconds["archive"]),
        "archive / predict": ratio(seconds["predict"], seconds["archive"]),
        "archive, heatmaps / archive": ratio(seconds["archive"], seconds["archive, heatmaps"]),
        "archive, 2 / archive, 1": ratio(seconds["archive, 1"], seconds["archive, 2"]),
    }
    for n in WORKERS:
        ratios[f"archive, {n} / predict, {n}"] = ratio(seconds[f"predict, {n}"], seconds[f"archive, {n}"])
        for variant in ("archive with loading", "archive on Ray with loading"):
            ratios[f"{variant}, {n} / Ray Data, {n}"] = ratio(seconds[f"Ray Data, {n}"], seconds[f"{variant}, {n}"])
        if torchxrayvision:
            ratios[f"archive, {n} / TorchXRayVision, {n}"] = ratio(
                seconds[f"TorchXRayVision, {n}"], seconds[f"archive, {n}"]
            )
    return {
        "images": len(paths),
        "rounds": rounds,
        "seconds": seconds,
        "images_per_second": {name: len(paths) / statistics.median(times) for name, times in seconds.items()},
        "ratios": ratios,
    }


@contextlib.contextmanager
def ray_on_this_machine() -> Iterator[str]:
    """Start Ray with one core more than there are, for the tasks of Ray Data that read and write, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # short, for the names of sockets
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard", "false",
        "--port", str(port), "--node-ip-address", "127.0.0.1", "--num-cpus", str(CORES + 1), "--disable-usage-stats",
        "--object-store-memory", str(2**28), "--temp-dir", str(folder),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "will now block forever" in line:
                break
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()  # and with it all processes that it started
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def run_script(python: Path, script: str, arguments: list[str]) -> float:
    """Return the seconds that a script prints last."""
    command = [str(python), "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.splitlines()[-1])


def run_ray_data(paths: list[str], workers: int, address: str) -> float:
    """Return the seconds from connecting to the end."""
    with tempfile.TemporaryDirectory() as folder:
        return run_script(
            Path(sys.executable), RAY_DATA_SCRIPT, [address, str(workers), str(SHARD), f"{folder}/out", *paths]
        )


def ratio(seconds: list[float], others: list[float]) -> float:
    """Return the median ratio of speeds: how many times as fast the second variant is."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def decode_all(images: list[str], session: BundleSession) -> None:
    """Decode and preprocess images in threads, without worker processes."""

    def prepare(path: str) -> None:
        preprocessing = session.card.preprocessing
        preprocess(decode(Path(path), min_side=preprocessing.min_side, allow_rejected=True), preprocessing)

    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(prepare, images))


def run_network(session: BundleSession, count: int) -> None:
    """Run the network alone on this number of images, with one thread for each of as many calls as there are cores."""
    size = session.card.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, size, size), dtype=np.uint8)
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda _: session.outputs(pixels), range(-(-count // BATCH_SIZE))))


def run_archive(source: Path, *, loading: bool = False, **options: Any) -> float:
    """Return the seconds of an archive.

    Args:
        source: The source.
        loading: Whether to count loading the model and listing, too.
        options: Of `score_archive`.
    """
    began = time.perf_counter()

    def listed(_: object) -> None:
        nonlocal began
        if not loading:
            began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        score_archive(open_source(str(source)), Path(folder), model={}, shard_size=SHARD, on_listed=listed, **options)
        return time.perf_counter() - began


# --- bookkeeping ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class NamedSource(Source):
    """A source of names without files."""

    def images(self) -> Iterator[SourceImage]:
        """Yield names as an archive has them."""
        for number in range(int(self.path_column)):
            yield SourceImage(f"{number // 1000:06d}/study-{number:09d}/image.dcm", 40_000, 1)


class StoredResults:
    """Results of real images under other names, in place of decoding and network."""

    def __init__(self, source: Path) -> None:
        model = load_model(threads=1, isolated=True)
        paths = [path for path in sorted(source.rglob("*")) if path.is_file()][:SHARD_SIZE]
        self._contents = [path.read_bytes() for path in paths]
        self._scored = [each for content in self._contents for each in model.score_batch([content])]
        model.close()

    def __call__(self, model: object, reader: object, shard: ListedShard, **options: Any) -> ShardResult:
        """Return a shard, as `score_shard` does."""
        rows = []
        for place, name in enumerate(shard.names):
            content, scored = self._contents[place % len(self._contents)], self._scored[place % len(self._scored)]
            rows.append(build_row(shard.first_row + place, name, content, scored))
        if count := options.get("count"):
            count(len(rows), 0)
        return ShardResult(
            shard=shard.number,
            rows=len(rows),
            failed=0,
            decisions={"pneumonia": len(rows)},
            table=write_table(rows),
            heatmaps=None,
            seconds=0.0,
            runtime=current_runtime("cpu"),
        )


def measure_rows(source: Path, rows: int, folder: Path) -> dict[str, float]:
    """Return seconds and peak memory of each step on an archive of this number of rows, each step in its own process."""
    found: dict[str, float] = {}
    for step in ("score", "resume", "verify"):
        command = [sys.executable, __file__, str(source), "--step", step, "--rows", str(rows), "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    found["listing, MB"] = sum(path.stat().st_size for path in folder.rglob("listing/*")) / MEGABYTE
    found["journal, MB"] = sum(path.stat().st_size for path in folder.rglob("sets/*.jsonl")) / MEGABYTE
    found["predictions, MB"] = sum(path.stat().st_size for path in folder.rglob("shard-*")) / MEGABYTE
    return found


def run_step(step: str, source: Path, rows: int, folder: Path) -> None:
    """Run one step, and print its seconds and the peak memory of this process as JSON."""
    if step == "verify":
        seconds = time_call(lambda: verify_archive(folder))
    else:
        named = NamedSource(str(source), "list", LocalReader(str(source)), str(rows))
        stored = StoredResults(source) if step == "score" else score_shard
        with mock.patch.object(archive_score, "score_shard", stored):
            seconds = time_call(lambda: score_archive(named, folder, model={}, workers=1))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({f"{step}, s": seconds, f"{step}, MB": memory}))


def measure_engines(source: Path) -> dict[str, float]:
    """Return milliseconds for each shard of one row whose result is stored: of the local engine, and of a task of Ray."""
    stored = StoredResults(source)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        named = NamedSource(str(source), "list", LocalReader(str(source)), str(STUB_SHARDS))
        with mock.patch.object(archive_score, "score_shard", stored):
            began = 0.0

            def listed(_: object) -> None:
                nonlocal began
                began = time.perf_counter()

            score_archive(named, Path(name), model={}, shard_size=1, workers=1, on_listed=listed)
            found["local, ms per shard"] = 1000 * (time.perf_counter() - began) / STUB_SHARDS
    import ray

    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    try:
        content = ray.put(stored(None, None, ListedShard(0, 0, ("a.png",))))
        task = ray.remote(num_cpus=1)(_return)
        ray.get([task.remote(content, shard) for shard in range(CORES)])
        began = time.perf_counter()
        ray.get([task.remote(content, shard) for shard in range(STUB_SHARDS)])
        found["task of Ray, ms"] = 1000 * (time.perf_counter() - began) / STUB_SHARDS
    finally:
        ray.shutdown()
    return found


def _return(content: ShardResult, shard: int) -> ShardResult:
    return content._replace(shard=shard)


# --- report --------------------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# Archives", ""]
    if speed := result.get("speed"):
        lines += [
            f"## Speed: {speed['images']} images, {speed['rounds']} rounds",
            "",
            _machine(speed),
            "A number is that of workers; without one, one per core and one more.",
            "",
            "| variant | images per second |",
            "| --- | --- |",
            *(f"| {name} | {value:.1f} |" for name, value in speed["images_per_second"].items()),
            "",
            "| ratio of speeds | |",
            "| --- | --- |",
            *(f"| {name} | {value:.2f} |" for name, value in speed["ratios"].items()),
            "",
        ]
    if engines := result.get("engines"):
        lines += [
            "## Engines",
            "",
            _machine(engines),
            "",
            "| engine | |",
            "| --- | --- |",
            *(f"| {name} | {value:.1f} |" for name, value in engines["values"].items()),
            "",
        ]
    if rows := result.get("rows"):
        columns = rows["values"]
        lines += [
            "## Bookkeeping",
            "",
            f"{_machine(rows)} Stored results take the place of decoding and network.",
            "",
            f"| | {' | '.join(f'{int(count):,} rows' for count in columns)} |",
            "| --- |" + " --- |" * len(columns),
            *(
                f"| {name} | {' | '.join(f'{values[name]:.1f}' for values in columns.values())} |"
                for name in next(iter(columns.values()))
            ),
            "",
        ]
    return "\n".join(lines)


def _machine(part: dict[str, Any]) -> str:
    others = " Other programs ran on the machine: compare ratios, not seconds." if part["load"] > 1 else ""
    return f"{platform.machine()}, {part['cores']} cores, load {part['load']:.1f} before the run.{others}"


def measure_all_rows(source: Path, counts: list[int]) -> dict[str, Any]:
    """Return the numbers of `measure_rows` for each number of rows."""
    values = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            values[str(count)] = measure_rows(source, count, Path(folder) / "archive")
        print(f"{count:,} rows: {values[str(count)]}", flush=True)
    return {"values": values}


def main() -> None:
    """Measure, and write archive.json and archive.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument(
        "--parts", nargs="+", choices=["speed", "engines", "rows"], default=["speed", "engines", "rows"]
    )
    parser.add_argument("--images", type=int, default=144, help="images of the part speed, drawn at random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--torchxrayvision", type=Path, metavar="PYTHON", help="a Python that has TorchXRayVision")
    parser.add_argument("--out", type=Path, default=Path("results/archive"))
    parser.add_argument("--step", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.source, arguments.rows[0], arguments.folder)
        return
    images = [path for path in sorted(arguments.source.rglob("*")) if path.is_file()]
    images = random.Random(0).sample(images, min(arguments.images, len(images)))
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "engines": lambda: {"values": measure_engines(arguments.source)},
        "speed": lambda: measure_speed(images, arguments.rounds, arguments.torchxrayvision),
        "rows": lambda: measure_all_rows(arguments.source, arguments.rows),
    }
    os.environ |= {  # Ray reads them once, when it is imported
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    file = arguments.out / "archive.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for part in arguments.parts:
        load = os.getloadavg()[0]
        result[part] = {"cores": CORES, "load": load, **measures[part]()}
        write_atomically(file, json.dumps(result, indent=1) + "\n")
        write_atomically(arguments.out / "archive.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
