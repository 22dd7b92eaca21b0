"""What a service bears: its rate beside that of the bare session, an overload, and a long time under load; on the real process.

- throughput: 1, 8 and 64 clients, each of which posts one image a request and waits for the answer. They take turns with the bare
  session: `predict_many` on the same images out of memory, decoded, prepared and scored on all cores by one process that keeps
  nothing; and with the network alone, on images that are prepared already.
- overload: images arrive at twice the rate of the fastest of these, whether or not those before them are answered. Each is judged
  (201) or sent away (503 with Retry-After), and nothing else.
- soak: 8 clients at a quarter of the rate that 8 reached.

Memory at the end of overload and soak is at most 5% above what it was after a sixth of them (5 of 30 minutes). A comment in each
file holds another number, so each is scored and kept, on the disk before it is answered, and in the end has a row in the audit
trail. They are sent by another process on the same cores, whose share is stated. Needs Linux, and about 10 GB where temporary
files lie (TMPDIR). The exit status is 1 where anything but a speed fails.
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
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import phantom
from pneumoscope.inference.model import load_model
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import open_database

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hostile import served

CORES = os.cpu_count() or 1
CLIENTS, GOOD = (1, 8, 64), {"201"}
SIDE = 1024  # pixels of a drawn image: about as many as the images of the public set have
FLAT = 1.05
ROW = "{} | {n:,} | {p50:.0f} | {p95:.0f} | {p99:.0f} |"
HEAD, RULE = "answer | requests | p50, ms | p95 | p99 |", "--- | --- | --- | --- | --- |"
PATIENCE, EVERY = 60, 0.5  # seconds for an answer, and between looks at the memory
Answer = tuple[float, float, str]  # seconds from the start, and since it was due; the status, or the error's name
Load = tuple[list[Answer], float, list[float]]  # answers, the sender's share of the cores, the service's memory in MB


def numbered(image: bytes, number: int) -> bytes:
    """A JPEG file with a number in a comment behind its first marker; its pixels are the same."""
    return image[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + image[2:]


async def sent(images: list[bytes], port: int, first: int, clients: int, seconds: float, rate: float) -> list[Answer]:
    """What was answered to images that took turns for so long, numbered from `first`.

    Each client keeps its connection, and posts its next image when it has its answer; or, with a rate, when it is its turn, by a
    connection of its own. With no client each image comes from one of its own, so that none waits for another's answer.
    """
    clients = clients or int(rate * seconds) + 1
    numbers, answers, start = itertools.count(first), list[Answer](), time.perf_counter()

    async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        number = next(numbers)
        image = numbered(images[number % len(images)], number)
        head = f"POST /v1/predictions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        writer.writelines([f"{head}Content-Length: {len(image)}\r\n\r\n".encode(), image])
        said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(said.partition("\r\ncontent-length: ")[2].partition("\r\n")[0]))
        status = said.split()[1]
        return "503 without Retry-After" if status == "503" and "\r\nretry-after: " not in said else status

    async def client(place: int) -> None:
        stream = None
        for turn in itertools.count():
            due = start + (place + turn * clients) / rate if rate else time.perf_counter()
            if due >= start + seconds:
                break
            await asyncio.sleep(due - time.perf_counter())
            try:
                async with asyncio.timeout(PATIENCE):
                    stream = stream or await asyncio.open_connection("127.0.0.1", port)
                    status = await post(*stream)
            except (OSError, EOFError, ValueError) as error:  # no answer, or none that HTTP has
                status = type(error).__name__
            now = time.perf_counter()
            answers.append((now - start, now - due, status))
            if stream and (rate or not status.isdigit()):
                stream[1].close()
                stream = None

    await asyncio.gather(*map(client, range(clients)))
    return answers


def by_status(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """How many there were, and percentiles of their time, milliseconds."""
    points: dict[str, dict[str, float]] = {}
    for status in sorted({status for _, _, status in answers}):
        times = [1000 * seconds for _, seconds, found in answers if found == status]
        p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
        points[status] = {"n": len(times), "p50": p50, "p95": p95, "p99": p99}
    return points


def send(asked: str) -> None:
    """What the sending process does: post images, and print the answers and its share of the cores as JSON."""
    resource.setrlimit(resource.RLIMIT_NOFILE, 2 * (resource.getrlimit(resource.RLIMIT_NOFILE)[1],))
    plan = json.loads(asked)
    images = [Path(path).read_bytes() for path in plan.pop("paths")]
    before, start = time.process_time(), time.perf_counter()
    answers = asyncio.run(sent(images, **plan))
    share = (time.process_time() - before) / (time.perf_counter() - start) / CORES
    print(json.dumps([answers, share]))


def tell(text: str) -> None:
    """Progress, where somebody looks."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


class Service:
    """The real process; `kept` images were answered with 201, and what went wrong is in `faults`."""

    def __init__(self, process: subprocess.Popen[str], address: str, images: list[Path], faults: list[str]) -> None:
        self._process, self._images, self.faults = process, images, faults
        self._port, self._first, self.kept = int(address.rpartition(":")[2]), 0, 0

    def memory(self) -> float:
        """Resident, MB."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def load(self, what: str, clients: int, seconds: float, rate: float = 0, good: Set[str] = GOOD) -> Load:
        """Post images for so long (see `sent`); statuses that are not good are faults."""
        tell(what)
        plan = {"port": self._port, "first": self._first, "clients": clients, "seconds": seconds, "rate": rate}
        asked, memory = json.dumps({"paths": list(map(str, self._images)), **plan}), list[float]()
        with subprocess.Popen([sys.executable, __file__, "--send", asked], stdout=subprocess.PIPE, text=True) as sender:
            while True:
                memory.append(self.memory())
                if len(memory) % 120 == 0:
                    tell(f"{what}: {memory[-1]:.0f} MB after {len(memory) * EVERY / 60:.0f} min")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    answers, share = json.loads(sender.communicate(timeout=EVERY)[0])
                    break
        statuses = Counter(status for _, _, status in answers)
        self._first += len(answers)
        self.kept += statuses["201"]
        self.faults += [f"{what}: {n} x {status}" for status, n in statuses.items() if status not in good]
        return answers, share, memory


@contextlib.contextmanager
def watched(images: list[Path], faults: list[str]) -> Iterator[Service]:
    """The service, with a look at its end and at its audit log."""
    with tempfile.TemporaryDirectory() as place:
        with served(Path(place)) as (process, address):
            service = Service(process, address, images, faults)
            yield service
        engine = open_database(Path(place) / "records")
        rows = verify(engine).rows
        engine.dispose()
    if process.returncode or rows != service.kept:
        faults.append(f"it ended with {process.returncode}; {rows} rows in the audit log for {service.kept} images")


def throughput(service: Service, paths: list[Path], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Images a second of all that take turns; and how long the clients waited."""
    model, alone = load_model(threads=1), BundleSession.load(find_bundle(None))
    images = [path.read_bytes() for path in paths]
    ready = np.stack([alone.ready(decode(image)).pixels for image in images])

    def rate(judge: Callable[[Iterator[bytes]], int]) -> float:
        start = time.perf_counter()
        left = itertools.takewhile(lambda _: time.perf_counter() < start + seconds, itertools.cycle(images))
        return judge(left) / (time.perf_counter() - start)

    rows = defaultdict[str, dict[str, Any]](lambda: {"images_a_second": [], "to_bare": [], "answers": [], "share": []})
    service.load("first images", 8, min(seconds, 2))
    for turn in range(1, rounds + 1):
        reached = {"bare session": rate(lambda left: sum(1 for _ in model.predict_many(left)))}
        reached["network alone"] = rate(lambda left: sum(len(alone.outputs(ready).logit) for _ in left))
        for clients in CLIENTS:
            name = f"{clients} client{'s' * (clients > 1)}"
            answers, share, _ = service.load(f"round {turn}, {name}", clients, seconds)
            # From when all clients have begun to when none begins anew.
            counted = sum(status == "201" and seconds / 10 < at < seconds for at, _, status in answers)
            reached[name] = counted / (0.9 * seconds)
            rows[name]["answers"] += answers
            rows[name]["share"].append(share)
        for name, found in reached.items():
            rows[name]["images_a_second"].append(found)
            rows[name]["to_bare"].append(found / reached["bare session"])
    return {name: {**rows[name], "answers": by_status(rows[name]["answers"])} for name in reached}


def borne(service: Service, what: str, clients: int, seconds: float, rate: float, good: Set[str]) -> dict[str, Any]:
    """A fixed rate for so long: what was answered, and the memory, MB."""
    before = service.memory()
    answers, share, every = service.load(f"{what} at {rate:.0f} images/s", clients, seconds, rate, good)
    window = len(every) // 60 or 1
    middle = [statistics.median(every[at : at + window]) for at in range(0, len(every), window)]
    memory = {"before": before, "after a sixth": middle[len(middle) // 6], "peak": max(every), "at the end": middle[-1]}
    if memory["at the end"] > FLAT * memory["after a sixth"]:
        service.faults.append(f"{what}: memory grew")
    found = {"seconds": seconds, "rate": rate, "share": share, "answers": by_status(answers)}
    return {**found, "memory": memory, "medians": middle}


def text(document: dict[str, Any]) -> str:
    """Markdown for people."""

    def rows(row: dict[str, Any]) -> list[str]:
        return [ROW.format(status, **found) for status, found in row["answers"].items()]

    lines = [
        f"{document['about']}\n\n## Throughput\n",
        f"{document['rounds']} rounds of {document['seconds']:g} s each: medians, with the lowest and highest round. The bare"
        " session is `predict_many` on the same images on all cores, in one process that keeps nothing.\n",
        f"| | images/s | / bare | sender's share of the cores | {HEAD}\n| --- | --- | --- | --- | {RULE}",
    ]
    for name, row in document["throughput"].items():
        rate, middle = (statistics.median(row[which]) for which in ("images_a_second", "to_bare"))
        share = f"{statistics.median(row['share']):.0%}" if row["share"] else ""
        ratio = f"{middle:.2f} ({min(row['to_bare']):.2f} to {max(row['to_bare']):.2f})"
        lines.append(f"| {name} | {rate:.1f} | {ratio} | {share} | {' '.join(rows(row)) or '| | | | |'}")
    for name in ("overload", "soak"):
        if row := document[name]:
            memory = ", ".join(f"{when} {value:.0f} MB" for when, value in row["memory"].items())
            lines += [
                f"\n## {name.capitalize()}\n\n{row['seconds']:g} s at {row['rate']:.1f} images/s. Sender's share of the cores:"
                f" {row['share']:.0%}. Memory: {memory}.\n\n| {HEAD}\n| {RULE}",
                *(f"| {each}" for each in rows(row)),
            ]
    good = "Nothing failed, and the audit log has a row for each image that was kept."
    return "\n".join([*lines, "", "; ".join(document["faults"]) or good, f"\n`{document['command']}`\n\n{NOTICE}\n"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where anything but a speed failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images, JPEG; without it phantoms of their size are drawn")
    parser.add_argument("--images", type=int, default=32, help="that take turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each in a round")
    parser.add_argument("--overload", type=float, default=60, metavar="SECONDS", help="0 leaves it out")
    parser.add_argument("--soak", type=float, default=30, metavar="MINUTES", help="0 leaves it out")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms")
    parser.add_argument("--out", type=Path, required=True, help="folder for load.json and load.md")
    given = parser.parse_args(arguments)
    document: dict[str, Any] = {"rounds": given.rounds, "seconds": given.seconds, "overload": None, "soak": None}
    faults = document["faults"] = list[str]()
    with tempfile.TemporaryDirectory() as place:
        if not given.data:
            phantom(Path(place, "drawn"), train=given.images, test=2, seed=given.seed, size=SIDE)
        paths = sorted((given.data or Path(place, "drawn", "train")).rglob("*.jp*g"))
        images = paths[:: len(paths) // given.images or 1][: given.images]
        with watched(images, faults) as service:
            found = document["throughput"] = throughput(service, images, given.rounds, given.seconds)
            rates = {name: statistics.median(row["images_a_second"]) for name, row in found.items() if "client" in name}
            if given.overload:
                fast = 2 * max(rates.values())
                document["overload"] = borne(service, "overload", 0, given.overload, fast, {*GOOD, "503"})
        if given.soak:
            with watched(images, faults) as service:
                document["soak"] = borne(service, "soak", 8, 60 * given.soak, rates["8 clients"] / 4, GOOD)
        mean = sum(image.stat().st_size for image in images) / len(images) / 1000
    card = load_model().card
    what = "images of a folder" if given.data else f"phantoms of {SIDE} x {SIDE}, seed {given.seed}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "uvicorn", "fastapi", "sqlalchemy"))
    processor = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0] or "unknown"
    document["about"] = (
        f"`pneumoscope serve` ({__version__}; model {card.name}, {card.onnx_sha256[:16]}) on {CORES} cores"
        f" ({processor}), Python {sys.version.split()[0]}, {versions}. {len(images)} {what}, {mean:.0f} KB each."
    )
    document["command"] = shlex.join(["python", "benchmarks/service.py", *(arguments or sys.argv[1:])])
    print(text(document))
    write_atomically(given.out / "load.json", json.dumps(document, indent=2) + "\n")
    write_atomically(given.out / "load.md", text(document))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(send(sys.argv[2]) if sys.argv[1:2] == ["--send"] else main())
