"""Measure the service under load: throughput, overload and a long run, on a real server process.

- Throughput: 1, 8 and 64 clients, each of which posts one image per request and waits for the response. They take turns with the
  bare session (`predict_many` on the same images in memory: decoding, preprocessing and scoring on all cores in one process,
  without storage) and with the network alone on preprocessed images.
- Overload: images arrive at twice the highest of these rates, whether or not earlier ones are answered. Each must be answered by
  201, or by 503 with Retry-After.
- Soak: 8 clients at a quarter of the throughput of 8 clients, on a new service, after a warm-up at their full rate: the buffers
  for 8 images at once do not count as growth.

Memory at the end of overload and soak may exceed that after the first sixth (5 of 30 minutes) by 5%. A number in a comment makes
each file unique, and one in the age each prediction, so that each is scored, stored on disk before it is answered, and has a row
in the audit log. A second process on the same cores sends the images; its CPU usage is reported. Needs Linux and about 10 GB for
temporary files (TMPDIR). The exit status is 1 if anything but a speed fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope import __version__
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.model import load_model
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import open_database

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hostile import start_server

CORES = os.cpu_count() or 1
CLIENTS, CREATED = (1, 8, 64), {"201"}
SIZE = 1024  # pixels of a phantom; typical of the public data set
MAX_MEMORY_GROWTH = 1.05
WARM_UP = 30  # seconds, before the soak
TIMEOUT, MEMORY_INTERVAL = 60, 0.5  # seconds
COLUMNS, RULE = "status | requests | p50, ms | p95 | p99 |", "--- | --- | --- | --- | --- |"
ROW = "{} | {n:,} | {p50:.0f} | {p95:.0f} | {p99:.0f} |"
Response = tuple[float, float, str]  # seconds since the start, latency in seconds, status or name of the exception
Load = tuple[
    list[Response], float, list[float]
]  # responses, CPU usage of the sender (0 to 1), memory of the service in MB


def number_image(image: bytes, number: int) -> bytes:
    """Return a JPEG file with a number in a comment segment after the first marker; the pixels are the same."""
    return image[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + image[2:]


async def post_images(
    images: list[bytes], port: int, first: int, clients: int, seconds: float, rate: float
) -> list[Response]:
    """Post the images in turn for a number of seconds, numbered from `first`, and return the responses.

    Without a rate, each client keeps its connection and posts the next image when it has its response. With a rate, requests
    start on a schedule, each on its own connection; 0 clients means one per image, so that none waits for another response.
    """
    clients = clients or int(rate * seconds) + 1
    numbers, responses, start = itertools.count(first), list[Response](), time.perf_counter()

    async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        number = next(numbers)
        image = number_image(images[number % len(images)], number)
        age = (
            3 + number / 1e9
        )  # years: the pixels repeat, and the same image with the same age would be the same prediction
        head = f"POST /v1/predictions?age={age:.9f} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        writer.writelines([f"{head}Content-Length: {len(image)}\r\n\r\n".encode(), image])
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(headers.partition("\r\ncontent-length: ")[2].partition("\r\n")[0]))
        status = headers.split()[1]
        return "503 without Retry-After" if status == "503" and "\r\nretry-after: " not in headers else status

    async def run_client(index: int) -> None:
        connection = None
        for turn in itertools.count():
            due = start + (index + turn * clients) / rate if rate else time.perf_counter()
            if due >= start + seconds:
                break
            await asyncio.sleep(due - time.perf_counter())
            try:
                async with asyncio.timeout(TIMEOUT):
                    connection = connection or await asyncio.open_connection("127.0.0.1", port)
                    status = await post(*connection)
            except (OSError, EOFError, ValueError) as error:  # no response, or a malformed one
                status = type(error).__name__
            now = time.perf_counter()
            responses.append((now - start, now - due, status))
            if connection and (rate or not status.isdigit()):
                connection[1].close()
                connection = None

    await asyncio.gather(*map(run_client, range(clients)))
    return responses


def latencies_by_status(responses: Sequence[Response]) -> dict[str, dict[str, float]]:
    """Return the number of responses and the percentiles of their latency in milliseconds, per status."""
    latencies: dict[str, dict[str, float]] = {}
    for status in sorted({status for _, _, status in responses}):
        milliseconds = [1000 * latency for _, latency, other in responses if other == status]
        p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99)).tolist()
        latencies[status] = {"n": len(milliseconds), "p50": p50, "p95": p95, "p99": p99}
    return latencies


def run_sender(plan: str) -> None:
    """Post images as the JSON plan states, and print the responses and the CPU usage as JSON; runs in its own process."""
    resource.setrlimit(resource.RLIMIT_NOFILE, 2 * (resource.getrlimit(resource.RLIMIT_NOFILE)[1],))
    options = json.loads(plan)
    images = [Path(path).read_bytes() for path in options.pop("paths")]
    cpu_start, start = time.process_time(), time.perf_counter()
    responses = asyncio.run(post_images(images, **options))
    cpu_usage = (time.process_time() - cpu_start) / (time.perf_counter() - start) / CORES
    print(json.dumps([responses, cpu_usage]))


def report_progress(text: str) -> None:
    """Print to standard error if it is a terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


class Service:
    """A running server process.

    Attributes:
        stored: Number of images answered by 201.
        failures: Descriptions of everything that failed.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, images: list[Path], failures: list[str]) -> None:
        self._process, self._images, self.failures = process, images, failures
        self._port, self._first, self.stored = int(url.rpartition(":")[2]), 0, 0

    def memory(self) -> float:
        """Return the resident memory in MB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def load(
        self, name: str, clients: int, seconds: float, rate: float = 0, expected: Set[str] = frozenset(CREATED)
    ) -> Load:
        """Post images from another process, see `post_images`; unexpected statuses are failures."""
        report_progress(name)
        options = {"port": self._port, "first": self._first, "clients": clients, "seconds": seconds, "rate": rate}
        plan, memory = json.dumps({"paths": list(map(str, self._images)), **options}), list[float]()
        with subprocess.Popen([sys.executable, __file__, "--send", plan], stdout=subprocess.PIPE, text=True) as sender:
            while True:
                memory.append(self.memory())
                if len(memory) % 120 == 0:
                    minutes = len(memory) * MEMORY_INTERVAL / 60
                    report_progress(f"{name}: {memory[-1]:.0f} MB after {minutes:.0f} min")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    responses, cpu_usage = json.loads(sender.communicate(timeout=MEMORY_INTERVAL)[0])
                    break
        statuses = Counter(status for _, _, status in responses)
        self._first += len(responses)
        self.stored += statuses["201"]
        self.failures += [f"{name}: {n} x {status}" for status, n in statuses.items() if status not in expected]
        return responses, cpu_usage, memory


@contextlib.contextmanager
def run_service(images: list[Path], failures: list[str]) -> Iterator[Service]:
    """Yield a running service; afterwards, check its exit status and its audit log."""
    with tempfile.TemporaryDirectory() as folder:
        with start_server(Path(folder)) as (process, url):
            service = Service(process, url, images, failures)
            yield service
        engine = open_database(Path(folder) / "records")
        rows = verify(engine).rows
        engine.dispose()
    if process.returncode or rows != service.stored:
        failures.append(
            f"exit status {process.returncode}; {rows} rows in the audit log for {service.stored} stored images"
        )


def measure_throughput(service: Service, paths: list[Path], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Return the rates, the rates relative to the bare session, and the latencies of all variants."""
    model, session = load_model(threads=1), BundleSession.load(find_bundle(None))
    images = [path.read_bytes() for path in paths]
    preprocessed = np.stack([preprocess(decode(image), session.card.preprocessing) for image in images])

    def measure_rate(score: Callable[[Iterator[bytes]], int]) -> float:
        start = time.perf_counter()
        remaining = itertools.takewhile(lambda _: time.perf_counter() < start + seconds, itertools.cycle(images))
        return score(remaining) / (time.perf_counter() - start)

    rows = defaultdict[str, dict[str, Any]](
        lambda: {"images_per_second": [], "relative_to_bare": [], "responses": [], "sender_cpu": []}
    )
    service.load("warm-up", 8, min(seconds, 2))
    for number in range(1, rounds + 1):
        rates = {"bare session": measure_rate(lambda remaining: sum(1 for _ in model.predict_many(remaining)))}
        rates["network alone"] = measure_rate(
            lambda remaining: sum(len(session.outputs(preprocessed).logit) for _ in remaining)
        )
        for clients in CLIENTS:
            name = f"{clients} client{'s' * (clients > 1)}"
            responses, cpu_usage, _ = service.load(f"round {number}, {name}", clients, seconds)
            # Without the start, when not all clients are running, and the end, when no request starts.
            counted = sum(status == "201" and seconds / 10 < at < seconds for at, _, status in responses)
            rates[name] = counted / (0.9 * seconds)
            rows[name]["responses"] += responses
            rows[name]["sender_cpu"].append(cpu_usage)
        for name, rate in rates.items():
            rows[name]["images_per_second"].append(rate)
            rows[name]["relative_to_bare"].append(rate / rates["bare session"])
    return {name: {**rows[name], "responses": latencies_by_status(rows[name]["responses"])} for name in rates}


def measure_fixed_rate(
    service: Service, name: str, clients: int, seconds: float, rate: float, expected: Set[str]
) -> dict[str, Any]:
    """Return the latencies and the memory at a fixed rate; growing memory is a failure."""
    before = service.memory()
    responses, cpu_usage, memory = service.load(f"{name} at {rate:.0f} images/s", clients, seconds, rate, expected)
    window = len(memory) // 60 or 1
    medians = [statistics.median(memory[at : at + window]) for at in range(0, len(memory), window)]
    summary = {
        "before": before,
        "after a sixth": medians[len(medians) // 6],
        "peak": max(memory),
        "at the end": medians[-1],
    }
    if summary["at the end"] > MAX_MEMORY_GROWTH * summary["after a sixth"]:
        service.failures.append(f"{name}: memory grew")
    return {
        "seconds": seconds,
        "rate": rate,
        "sender_cpu": cpu_usage,
        "responses": latencies_by_status(responses),
        "memory": summary,
        "memory_medians": medians,
    }


def to_markdown(document: dict[str, Any]) -> str:
    """Return the results as Markdown."""

    def rows(row: dict[str, Any]) -> list[str]:
        return [ROW.format(status, **latencies) for status, latencies in row["responses"].items()]

    lines = [
        f"{document['description']}\n\n## Throughput\n",
        f"{document['rounds']} rounds of {document['seconds']:g} s each: medians, with the lowest and highest round. The bare"
        " session is `predict_many` on the same images on all cores, in one process, without storage.\n",
        f"| | images/s | / bare session | CPU usage of the sender | {COLUMNS}\n| --- | --- | --- | --- | {RULE}",
    ]
    for name, row in document["throughput"].items():
        rate, relative = (statistics.median(row[key]) for key in ("images_per_second", "relative_to_bare"))
        cpu_usage = f"{statistics.median(row['sender_cpu']):.0%}" if row["sender_cpu"] else ""
        ratio = f"{relative:.2f} ({min(row['relative_to_bare']):.2f} to {max(row['relative_to_bare']):.2f})"
        lines.append(f"| {name} | {rate:.1f} | {ratio} | {cpu_usage} | {' '.join(rows(row)) or '| | | | |'}")
    for name in ("overload", "soak"):
        if row := document[name]:
            memory = ", ".join(f"{when} {value:.0f} MB" for when, value in row["memory"].items())
            lines += [
                f"\n## {name.capitalize()}\n\n{row['seconds']:g} s at {row['rate']:.1f} images/s. CPU usage of the sender:"
                f" {row['sender_cpu']:.0%}. Memory: {memory}.\n\n| {COLUMNS}\n| {RULE}",
                *(f"| {each}" for each in rows(row)),
            ]
    passed = "Nothing failed, and the audit log has a row for each stored image."
    return "\n".join(
        [*lines, "", "; ".join(document["failures"]) or passed, f"\n`{document['command']}`\n\n{NOTICE}\n"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if anything but a speed failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of JPEG images; default: phantoms of similar size")
    parser.add_argument("--images", type=int, default=32, help="number of different images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="per variant and round")
    parser.add_argument("--overload", type=float, default=60, metavar="SECONDS", help="0 skips it")
    parser.add_argument("--soak", type=float, default=30, metavar="MINUTES", help="0 skips it")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms")
    parser.add_argument("--out", type=Path, required=True, help="folder for load.json and load.md")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "overload": None,
        "soak": None,
        "failures": [],
    }
    failures: list[str] = document["failures"]
    with tempfile.TemporaryDirectory() as folder:
        if not options.data:
            write_phantoms(Path(folder, "phantoms"), train=options.images, test=2, seed=options.seed, size=SIZE)
        paths = sorted((options.data or Path(folder, "phantoms", "train")).rglob("*.jp*g"))
        images = paths[:: len(paths) // options.images or 1][: options.images]
        with run_service(images, failures) as service:
            throughput = measure_throughput(service, images, options.rounds, options.seconds)
            document["throughput"] = throughput
            rates = {
                name: statistics.median(row["images_per_second"])
                for name, row in throughput.items()
                if "client" in name
            }
            if options.overload:
                document["overload"] = measure_fixed_rate(
                    service, "overload", 0, options.overload, 2 * max(rates.values()), {*CREATED, "503"}
                )
        if options.soak:
            with run_service(images, failures) as service:
                service.load("warm-up", 8, WARM_UP)
                document["soak"] = measure_fixed_rate(
                    service, "soak", 8, 60 * options.soak, rates["8 clients"] / 4, CREATED
                )
        kilobytes = sum(image.stat().st_size for image in images) / len(images) / 1000
    card = load_model().card
    source = "images of a folder" if options.data else f"phantoms of {SIZE} x {SIZE}, seed {options.seed}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "uvicorn", "fastapi", "sqlalchemy"))
    processor = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0] or "unknown"
    document["description"] = (
        f"`pneumoscope serve` ({__version__}; model {card.name}, {card.onnx_sha256[:16]}) on {CORES} cores"
        f" ({processor}), Python {sys.version.split()[0]}, {versions}. {len(images)} {source}, {kilobytes:.0f} KB each."
    )
    document["command"] = shlex.join(["python", "benchmarks/service.py", *(arguments or sys.argv[1:])])
    print(to_markdown(document))
    write_atomically(options.out / "load.json", json.dumps(document, indent=2) + "\n")
    write_atomically(options.out / "load.md", to_markdown(document))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_sender(sys.argv[2]) if sys.argv[1:2] == ["--send"] else main())
