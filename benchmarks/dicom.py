"""Measure how fast DICOM images are received and predicted: beside Orthanc, and beside the bare inference session.

In each round, the same images are sent by one association and by four, to Orthanc's own C-STORE (temporary storage on the
same disk), and to pneumoscope, which acknowledges an image when its file and its row are on the disk. The senders are separate
processes on the same cores. Then the time until pneumoscope has predicted the images is measured, relative to `predict_many`
of the same files in memory ("bare session"; see `service.py`). Images are phantoms of 1 to 2 megapixels, and tiny ones. With
--soak, images arrive at a quarter of the speed of prediction, and resident memory at the end may exceed that after the first
sixth by 5%.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydicom

from pneumoscope import __version__
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.inference.model import load_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from tests.processes import free_port

from dicom_hostile import encode, memory
from dicom_nodes import TIMEOUT, Service, association, make_instances

ASSOCIATIONS = (1, 4)
SIZES = {"1 to 2 MP": (1024, 1448), "tiny": (64, 64)}
MAX_MEMORY_GROWTH = 1.05
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"


@contextlib.contextmanager
def run_orthanc(folder: Path) -> Iterator[int]:
    """Start Orthanc with its default storage in a folder, and yield its DICOM port."""
    folder.mkdir(parents=True)
    port, web_port = free_port(), free_port()
    settings = {
        "Name": "BENCHMARK", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "DicomPort": port, "HttpPort": web_port, "DicomAet": "PNEUMOSCOPE", "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomThreadsCount": 4, "OverwriteInstances": False,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + TIMEOUT
            while "Orthanc has started" not in (folder / "log.txt").read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Orthanc does not start: {(folder / 'log.txt').read_text()[-2000:]}")
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(TIMEOUT)


def run_sender(port: str, folder: str, part: str, parts: str) -> None:
    """Send every `parts`-th file of a folder on one association when a line is read.

    Prints how many were acknowledged, and the monotonic times of the start and of the last acknowledgment.
    """
    paths = sorted(Path(folder).glob("*.dcm"))[int(part) :: int(parts)]
    instances = [pydicom.dcmread(path) for path in paths]
    with association(int(port)) as opened:
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.monotonic()
        statuses = [opened.send_c_store(instance).get("Status") for instance in instances]
        end = time.monotonic()
    print(json.dumps([sum(status == 0x0000 for status in statuses), start, end]), flush=True)


def measure_reception(port: int, folder: Path, count: int, associations: int) -> float:
    """Return the number of images that were acknowledged per second.

    Raises:
        RuntimeError: Not all were acknowledged.
    """
    command = [sys.executable, __file__, "--send", str(port), str(folder)]
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(subprocess.Popen(
                [*command, str(part), str(associations)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ))
            for part in range(associations)
        ]  # fmt: skip
        for sender in senders:
            assert sender.stdout
            assert sender.stdout.readline() == "ready\n", "a sender does not start"
        for sender in senders:
            assert sender.stdin
            sender.stdin.write("\n")
            sender.stdin.flush()
        numbers, starts, ends = zip(
            *(json.loads(sender.communicate(timeout=10 * TIMEOUT)[0]) for sender in senders), strict=True
        )
    if sum(numbers) != count:
        raise RuntimeError(f"{sum(numbers)} of {count} images were acknowledged")
    return float(count / (max(ends) - min(starts)))


def write_images(folder: Path, sizes: Sequence[int], count: int, seed: int) -> list[bytes]:
    """Write images of these sizes in turn, and return their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for place, size in enumerate(sizes):
        share = len(range(place, count, len(sizes)))
        for number, instance in enumerate(make_instances(share, seed=10 * seed + place, size=size)):
            files.append(encode(instance))
            (folder / f"{number:06}-{place}.dcm").write_bytes(files[-1])
    return files


def measure(folder: Path, model_folder: Path | None, sizes: Sequence[int], rounds: int, count: int) -> dict[str, Any]:
    """Return images per second and the ratios, by number of associations."""
    rows: dict[str, list[float]] = defaultdict(list)
    model = load_model(*filter(None, [model_folder]), threads=1)
    for number in range(rounds):
        for associations in ASSOCIATIONS:
            here = folder / f"{number}-{associations}"
            files = write_images(here / "images", sizes, count, 10 * number + associations)
            with run_orthanc(here / "orthanc") as port:
                orthanc = measure_reception(port, here / "images", count, associations)
            service = Service(here / "service", {}, [], model=model_folder, quiet_seconds=3600)
            service.start()
            try:
                ours = measure_reception(service.port, here / "images", count, associations)
                if status := service.stop():
                    raise RuntimeError(f"the service ended with status {status}")
                _seconds(model, files[:1])  # starts what decodes
                bare = count / _seconds(model, files)
                predicted = measure_prediction(service, count)
            finally:
                service.kill()
            shutil.rmtree(here)
            for name, value in (
                ("Orthanc", orthanc), ("received", ours), ("received / Orthanc", ours / orthanc),
                ("bare session", bare), ("predicted", predicted), ("predicted / bare session", predicted / bare),
            ):  # fmt: skip
                rows[f"{associations} {name}"].append(value)
    return dict(rows)


def _seconds(model: Any, files: Sequence[bytes]) -> float:
    """Return the time that predictions of files take."""
    start = time.perf_counter()
    assert sum(1 for _ in model.predict_many(iter(files))) == len(files)
    return time.perf_counter() - start


def measure_prediction(service: Service, count: int) -> float:
    """Start a service whose inbox is full, release it, and return the predictions per second from the first to the last."""
    from pneumoscope.service.storage.database import open_database
    from pneumoscope.service.storage.inbox import Inbox

    engine = open_database(service.data)
    inbox = Inbox(engine, service.data)
    assert inbox.release() == count
    inbox.close()
    engine.dispose()
    service.start()
    while not (first := service.count("/v1/predictions")):
        time.sleep(0.02)
    start, deadline = time.perf_counter(), time.monotonic() + 20 * TIMEOUT
    while service.count("/v1/predictions") < count:
        if time.monotonic() > deadline:
            raise RuntimeError("the images are not predicted in time")
        time.sleep(0.05)
    return (count - first) / (time.perf_counter() - start)


def soak(folder: Path, model: Path | None, seconds: float, rate: float) -> dict[str, Any]:
    """Send images at a rate, and return the memory of the service; growing memory is a failure."""
    service = Service(folder / "soak", {}, [], model=model)
    service.start()
    values: list[float] = []
    sent, start = 0, time.monotonic()
    try:
        batch, place, opened_at = make_instances(64, seed=4000, size=1024), 0, start
        while time.monotonic() < start + seconds:
            if place == len(batch):  # before the association, which the service would end after 30 s of silence
                batch, place = make_instances(64, seed=4001 + sent, size=1024), 0
                opened_at = time.monotonic()
            with association(service.port) as opened:
                while place < len(batch) and time.monotonic() < min(start + seconds, opened_at + 30):
                    status = opened.send_c_store(batch[place]).get("Status")
                    if status != 0x0000:
                        raise RuntimeError(f"an image was answered by {status}")
                    place, sent = place + 1, sent + 1
                    values.append(memory(service))
                    time.sleep(max(0, start + sent / rate - time.monotonic()))
            opened_at = time.monotonic()
        waiting, deadline = sent, time.monotonic() + 10 * TIMEOUT
        while waiting and time.monotonic() < deadline:
            waiting = sent - service.count("/v1/predictions")
            time.sleep(0.5)
        values.append(memory(service))
        service.stop()
    finally:
        service.kill()
    sixth = statistics.median(values[len(values) // 6 :][:10])
    return {
        "seconds": seconds, "rate": rate, "sent": sent, "not predicted": waiting,
        "memory, MB": {"at the start": values[0], "after a sixth": sixth, "peak": max(values), "at the end": values[-1]},
        "grew": statistics.median(values[-10:]) > MAX_MEMORY_GROWTH * sixth,
    }  # fmt: skip


def to_markdown(document: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"{document['description']}\n\n{document['rounds']} rounds of {document['images']} images: medians, with the lowest and"
        " the highest round.\n",
        "| images | associations | Orthanc received/s | pneumoscope received/s | / Orthanc | bare session/s | predicted/s |"
        " / bare session |\n| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    def cell(row: dict[str, list[float]], key: str, *, ratio: bool = False) -> str:
        values = row[key]
        middle = statistics.median(values)
        return f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})" if ratio else f"{middle:.1f}"

    for name, row in document["sizes"].items():
        for number in ASSOCIATIONS:
            lines.append(
                f"| {name} | {number} | {cell(row, f'{number} Orthanc')} | {cell(row, f'{number} received')}"
                f" | {cell(row, f'{number} received / Orthanc', ratio=True)} | {cell(row, f'{number} bare session')}"
                f" | {cell(row, f'{number} predicted')} | {cell(row, f'{number} predicted / bare session', ratio=True)} |"
            )
    if found := document["soak"]:
        used = ", ".join(f"{when} {value:.0f} MB" for when, value in found["memory, MB"].items())
        lines.append(
            f"\nSoak: {found['sent']:,} images in {found['seconds']:g} s at {found['rate']:.1f} images/s, of which"
            f" {found['not predicted']} were not predicted. Memory: {used}; it {'grew' if found['grew'] else 'is flat'}."
        )
    if document["note"]:
        lines.append(f"\n{document['note']}")
    return "\n".join([*lines, f"\n`{document['command']}`\n", f"{NOTICE}\n"])


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as "2m", "90s" or "0"."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 2m") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if memory grew or an image was not predicted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100, help="of each size, number of associations and round")
    parser.add_argument("--soak", type=parse_duration, default=120, metavar="DURATION", help="such as 30m; 0 skips it")
    parser.add_argument("--model", type=Path, help="folder of a bundle; default: the included model")
    parser.add_argument("--note", default="", help="a remark for the result, such as other load on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for load.json and load.md")
    options = parser.parse_args(arguments)
    if not Path(ORTHANC).exists():
        parser.error("Orthanc is not installed (Debian's package orthanc)")
    document: dict[str, Any] = {
        "rounds": options.rounds, "images": options.images, "sizes": {}, "soak": None, "note": options.note
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, pixels in SIZES.items():
            document["sizes"][size] = measure(
                folder / size.replace(" ", "-"), options.model, pixels, options.rounds, options.images
            )
        if options.soak:
            rate = statistics.median(document["sizes"]["1 to 2 MP"]["1 predicted"]) / 4
            document["soak"] = soak(folder, options.model, options.soak, rate)
    processor = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0] or "unknown"
    orthanc = subprocess.run(
        [ORTHANC, "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split("\n")[0]
    document["description"] = (
        f"`pneumoscope serve` ({__version__}, pynetdicom {version('pynetdicom')}) and {orthanc} on {os.cpu_count()} cores"
        f" ({processor}), Python {sys.version.split()[0]}, load average {os.getloadavg()[2]:.1f} in the last 15 minutes."
    )
    document["command"] = shlex.join(["python", "benchmarks/dicom.py", *(arguments or sys.argv[1:])])
    text = to_markdown(document)
    print(text)
    write_atomically(options.out / "load.json", json.dumps(document, indent=2) + "\n")
    write_atomically(options.out / "load.md", text)
    found = document["soak"]
    return 1 if found and (found["grew"] or found["not predicted"]) else 0


if __name__ == "__main__":
    sys.exit(run_sender(*sys.argv[2:]) if sys.argv[1:2] == ["--send"] else main())  # type: ignore[func-returns-value]
