"""Fuzz the HTTP API: mutated images of every format and malformed multipart forms, sent to a real server process.

Every response must be a prediction or a client error that the API documents; a server error, a timeout or a closed connection
is a failure. Afterwards the process must be alive and ready, and its audit log must verify. Inputs are generated from a seed;
inputs that fail are written to files, so that they can be sent again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.uid import RLELossless

from pneumoscope import __version__
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.evaluation.image_variants import encode_dicom
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import open_database

EXPECTED_STATUSES = {201, 400, 413, 415, 422}
SIZE = 96  # pixels
TOKENS = (
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"%s%n",
    b"../../etc/passwd",
    b"DICM",
    b"IHDR",
)
CONTENT_TYPES = (
    "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 300,
    "multipart/form-data; boundary=b", "image/png", "application/dicom", "application/octet-stream", "text/html", "", "\x7f",
)  # fmt: skip
FORM_FIELDS = (
    'name="images"; filename="a"',
    'name="images"',
    'name=""; filename=""',
    "",
    'name="images"; filename="' + "é" * 200,
)
PART_HEADERS = ("", "Content-Type: image/png\r\n", "Content-Type: \x00\r\n", "X" * 5000 + ": y\r\n")


def valid_images() -> list[bytes]:
    """Return one valid file of each format."""
    gray = draw_phantom(0, pneumonia=True, size=SIZE)
    files = [_encode(gray, file_format) for file_format in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")]
    return [*files, encode_dicom(gray), _compress_dicom(encode_dicom(gray))]


def _encode(gray: npt.NDArray[np.uint8], file_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(gray).save(file, file_format)
    return file.getvalue()


def _compress_dicom(content: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.compress(RLELossless)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset)
    return file.getvalue()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the content with some bytes flipped, deleted, duplicated, inserted or overwritten, mostly in the header."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        position = rng.randrange(min(len(data), rng.choice((64, 1000, len(data)))))
        mutation = rng.randrange(6)
        if mutation == 0:
            data[position] ^= 1 << rng.randrange(8)
        elif mutation == 1:
            token = rng.choice(TOKENS)
            data[position : position + len(token)] = token
        elif mutation == 2:
            del data[position : position + rng.randrange(1, 64)]
        elif mutation == 3:
            data[position:position] = data[position : position + rng.randrange(1, 256)]
        elif mutation == 4:
            del data[position:]
        else:
            data[position:position] = rng.randbytes(rng.randrange(1, 32))
        if not data:
            return b""
    return bytes(data)


def malformed_form(rng: random.Random, images: Sequence[bytes]) -> tuple[str, bytes]:
    """Return a content type and a body, which may not match each other."""
    if rng.random() < 0.3:
        return rng.choice(CONTENT_TYPES), rng.randbytes(rng.randrange(400))
    parts = []
    for _ in range(rng.randrange(4)):
        field, header = rng.choice(FORM_FIELDS), rng.choice(PART_HEADERS)
        head = f"--b\r\nContent-Disposition: form-data; {field}\r\n{header}\r\n".encode()
        parts.append(head + mutate(rng.choice(images), rng) + b"\r\n")
    body = b"".join(parts) + b"--b--\r\n"
    return "multipart/form-data; boundary=b", mutate(body, rng) if rng.random() < 0.5 else body


def generate_inputs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield content types and bodies, the same for the same seed."""
    images = valid_images()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        if rng.random() < 0.2:
            yield malformed_form(rng, images)
        else:
            yield "application/octet-stream", mutate(rng.choice(images), rng)


@contextlib.contextmanager
def start_server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `pneumoscope serve` with its data in `folder`, and yield the process and its URL."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--data-dir", str(folder / "records")]
    log_file = folder / "log.txt"
    with log_file.open("w") as log, subprocess.Popen(command, stderr=log, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not (url := re.search(r"http://\S+", log_file.read_text())):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(log_file.read_text())
                time.sleep(0.1)
            yield process, url[0]
        finally:
            process.terminate()


def send_inputs(url: str, count: int, seed: int, clients: int, failures: Path) -> Counter[str]:
    """Send all inputs and return the number of responses per status; inputs that fail are written to `failures`."""
    responses: Counter[str] = Counter()
    with httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

        def send(number: int, content_type: str, body: bytes) -> str:
            try:
                response = client.post("/v1/predictions", content=body, headers={"Content-Type": content_type.encode()})
            except httpx.HTTPError as error:
                outcome = type(error).__name__
            else:
                outcome = str(response.status_code)
                if response.status_code in EXPECTED_STATUSES:
                    return outcome
            write_atomically(failures / f"{seed}-{number}-{outcome}.bin", f"{content_type!r}\n".encode() + body)
            return f"{outcome} (unexpected)"

        with ThreadPoolExecutor(clients) as pool:
            pending = []
            for number, (content_type, body) in enumerate(generate_inputs(count, seed)):
                pending.append(pool.submit(send, number, content_type, body))
                if len(pending) == 200 or number == count - 1:
                    responses.update(future.result() for future in pending)
                    pending.clear()
                    print(f"{number + 1} of {count}", file=sys.stderr, flush=True)
    return responses


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the inputs, print and write the result; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for hostile.md, hostile.json and inputs that failed"
    )
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with start_server(folder) as (process, url):
            start = time.perf_counter()
            responses = send_inputs(url, options.inputs, options.seed, options.clients, options.out / "failed")
            seconds = time.perf_counter() - start
            ready = httpx.get(f"{url}/readyz", timeout=30).status_code == 200
            stored = httpx.get(f"{url}/v1/predictions?limit=1", timeout=30).json()["total"]
            unreadable = httpx.get(f"{url}/v1/unreadable?limit=1", timeout=30).json()["total"]
            alive = process.poll() is None
        engine = open_database(folder / "records")
        rows = verify(engine).rows
        # Images that repeat with another header have further rows.
        recorded = sum(row.event in ("predicted", "unreadable") for row in read_rows(engine))
        engine.dispose()
    passed = ready and alive and recorded == stored + unreadable and all(status.isdigit() for status in responses)
    command = shlex.join(["python", "benchmarks/hostile.py", *(arguments or sys.argv[1:])])
    state = "alive and ready" if ready and alive else "dead or not ready"
    text = (
        f"{options.inputs:,} malformed inputs sent to `pneumoscope serve`, seed {options.seed}, {options.clients} clients"
        f" ({__version__}). Afterwards the process is {state}; {stored:,} images and {unreadable:,} records of unreadable"
        f" files are stored, and the audit log of {rows:,} rows"
        " verifies.\n\n| status | inputs |\n| --- | --- |\n"
        + "".join(f"| {status} | {count:,} |\n" for status, count in sorted(responses.items()))
        + f"\n`{command}`\n\n{NOTICE}\n"
    )
    print(text)
    document = {
        "responses": responses,
        "ready": ready,
        "stored_images": stored,
        "unreadable_files": unreadable,
        "audit_log_rows": rows,
        "seconds": seconds,
        "command": command,
    }
    write_atomically(options.out / "hostile.json", json.dumps(document, indent=2) + "\n")
    write_atomically(options.out / "hostile.md", text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
