"""Measure `pneumoscope archive` beside `predict`, its lower bound, and a million rows.

- Speed: an archive on the local engine and on Ray, `predict_many`, and the lower bound, which is decoding alone plus the network
  alone, each on all cores, on the same images. Processes and models are started before; Ray is started within its time.
- One and two workers of the local engine.
- Engine: time for each shard whose scoring is replaced by a stored result, which is then written, flushed, renamed and entered.
- Many rows: listing, scoring with stored results, resuming and verifying an archive of 10,000 and of 1,000,000 rows. The source
  is a list of names, and stored results replace decoding and network: these are times and memory of the bookkeeping alone.

Variants take turns; a time is the median over the rounds, a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import shutil
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


def measure_speed(source: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds of each variant in each round, and ratios of images per second."""
    images = [str(path) for path in sorted(source.rglob("*")) if path.is_file()]
    model = load_model(threads=1, isolated=True)
    session = BundleSession.load(find_bundle(), threads=1)
    for _ in model.predict_many(images[:16]):  # starts the worker processes
        pass
    variants: dict[str, Callable[[], float]] = {
        "decode": lambda: time_call(lambda: decode_all(images, session)),
        "network": lambda: time_call(lambda: run_network(session, len(images))),
        "predict": lambda: time_call(lambda: list(model.predict_many(images))),
        "archive": lambda: run_archive(source, "local", 0),
        "archive, 1 worker": lambda: run_archive(source, "local", 1),
        "archive, 2 workers": lambda: run_archive(source, "local", 2),
        "archive on Ray": lambda: run_archive(source, "ray", 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, measure in variants.items():
            seconds[name].append(measure())
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {times[-1]:.1f} s" for name, times in seconds.items()),
            flush=True,
        )
    model.close()
    bound = [a + b for a, b in zip(seconds["decode"], seconds["network"], strict=True)]
    return {
        "images": len(images),
        "seconds": seconds,
        "images_per_second": {name: len(images) / statistics.median(times) for name, times in seconds.items()},
        "ratios": {
            "archive / lower bound": ratio(bound, seconds["archive"]),
            "archive / predict": ratio(seconds["predict"], seconds["archive"]),
            "archive on Ray / archive": ratio(seconds["archive"], seconds["archive on Ray"]),
            "2 workers / 1 worker": ratio(seconds["archive, 1 worker"], seconds["archive, 2 workers"]),
        },
    }


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


def run_archive(source: Path, engine: Any, workers: int) -> float:
    """Return the seconds from the listing to the end, without loading the model."""
    began = 0.0

    def listed(_: object) -> None:
        nonlocal began
        began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        score_archive(
            open_source(str(source)),
            Path(folder),
            model={},
            engine=engine,
            workers=workers,
            shard_size=32,
            on_listed=listed,
        )
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
    """Return seconds and peak memory of each step on an archive of this number of rows, each step in a process of its own."""
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

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
    speed = result["speed"]
    machine = f"{platform.machine()}, {CORES} cores, load {result['load']:.1f} before the run"
    others = ". Other programs ran on the machine: compare ratios, not seconds" if result["load"] > 1 else ""
    lines = [
        "# Archives",
        "",
        f"{machine}{others}. {speed['images']} images, {result['rounds']} rounds.",
        "",
        "| variant | images per second |",
        "| --- | --- |",
        *(f"| {name} | {value:.1f} |" for name, value in speed["images_per_second"].items()),
        "",
        "| ratio of speeds | |",
        "| --- | --- |",
        *(f"| {name} | {value:.2f} |" for name, value in speed["ratios"].items()),
        "",
        "| engine | |",
        "| --- | --- |",
        *(f"| {name} | {value:.1f} |" for name, value in result["engines"].items()),
        "",
        "Bookkeeping, with stored results in place of decoding and network:",
        "",
        f"| | {' | '.join(f'{int(rows):,} rows' for rows in result['rows'])} |",
        "| --- |" + " --- |" * len(result["rows"]),
        *(
            f"| {name} | {' | '.join(f'{values[name]:.1f}' for values in result['rows'].values())} |"
            for name in next(iter(result["rows"].values()))
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write archive.json and archive.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path("results/archive"))
    parser.add_argument("--step", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.source, arguments.rows[0], arguments.folder)
        return
    load = os.getloadavg()[0]
    rows = {}
    for count in arguments.rows:
        folder = Path(tempfile.mkdtemp())
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder)
            rows[str(count)] = measure_rows(arguments.source, count, folder / "archive")
        print(f"{count:,} rows: {rows[str(count)]}", flush=True)
    result = {
        "command": f"python benchmarks/archive.py SOURCE --rounds {arguments.rounds}",
        "cores": CORES,
        "load": load,
        "rounds": arguments.rounds,
        "rows": rows,
        "engines": measure_engines(arguments.source),
        "speed": measure_speed(arguments.source, arguments.rounds),
    }
    write_atomically(arguments.out / "archive.json", json.dumps(result, indent=1) + "\n")
    write_atomically(arguments.out / "archive.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
