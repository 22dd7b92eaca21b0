"""Whether a service survives what it is sent: mutated images of every format, and forms of random make, to the real process.

Every answer must be an answer that the description has: a prediction, or a problem that blames the request; never a fault of ours
(500), and never silence. In the end the process must live, be ready, and its audit log must hold. Inputs come from a seed: one
that fails is written to a file, and can be sent again.
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
from pneumoscope.imaging.phantom_drawing import draw
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import open_database

Grey = npt.NDArray[np.uint8]
sys.path.insert(0, str(Path(__file__).resolve().parent))
from robustness import dicom  # noqa: E402  beside this file, which is no package

EXPECTED = {201, 400, 413, 415, 422}
SIDE = 96
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
HEADERS = (
    "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 300,
    "multipart/form-data; boundary=b", "image/png", "application/dicom", "application/octet-stream", "text/html", "", "\x7f",
)  # fmt: skip


def seeds() -> list[bytes]:
    """One good image of each kind."""
    grey = draw(0, pneumonia=True, size=SIDE)
    pictures = [_file(grey, kind) for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")]
    return [*pictures, dicom(grey), compressed(dicom(grey))]


def _file(grey: Grey, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, kind)
    return file.getvalue()


def compressed(image: bytes) -> bytes:
    """A DICOM file in run-length coding."""
    dataset = pydicom.dcmread(io.BytesIO(image))
    dataset.compress(RLELossless)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset)
    return file.getvalue()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """An image with some of its bytes changed, moved, doubled, cut or overwritten by what parsers trip over."""
    data = bytearray(content)
    # Headers are where parsers are led astray.
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(min(len(data), chance.choice((64, 1000, len(data)))))
        how = chance.randrange(6)
        if how == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            token = chance.choice(TOKENS)
            data[place : place + len(token)] = token
        elif how == 2:
            del data[place : place + chance.randrange(1, 64)]
        elif how == 3:
            data[place:place] = data[place : place + chance.randrange(1, 256)]
        elif how == 4:
            del data[place:]
        else:
            data[place:place] = chance.randbytes(chance.randrange(1, 32))
        if not data:
            return b""
    return bytes(data)


def form(chance: random.Random, images: Sequence[bytes]) -> tuple[str, bytes]:
    """A content type, and a body that may or may not be of it."""
    if chance.random() < 0.3:
        return chance.choice(HEADERS), chance.randbytes(chance.randrange(400))
    parts = []
    for _ in range(chance.randrange(4)):
        name = chance.choice(
            (
                'name="images"; filename="a"',
                'name="images"',
                'name=""; filename=""',
                "",
                'name="images"; filename="' + "é" * 200,
            )
        )
        kind = chance.choice(("", "Content-Type: image/png\r\n", "Content-Type: \x00\r\n", "X" * 5000 + ": y\r\n"))
        head = f"--b\r\nContent-Disposition: form-data; {name}\r\n{kind}\r\n".encode()
        parts.append(head + mutated(chance.choice(images), chance) + b"\r\n")
    body = b"".join(parts) + b"--b--\r\n"
    return "multipart/form-data; boundary=b", mutated(body, chance) if chance.random() < 0.5 else body


def inputs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Content types and bodies, the same for the same seed."""
    images = seeds()
    for place in range(count):
        chance = random.Random(f"{seed} {place}")
        if chance.random() < 0.2:
            yield form(chance, images)
        else:
            yield "application/octet-stream", mutated(chance.choice(images), chance)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real process, and its address."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--data-dir", str(folder / "records")]
    with (folder / "log.txt").open("w") as log, subprocess.Popen(command, stderr=log, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://\S+", (folder / "log.txt").read_text())):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((folder / "log.txt").read_text())
                time.sleep(0.1)
            yield process, found[0]
        finally:
            process.terminate()


def attack(address: str, count: int, seed: int, clients: int, failed: Path) -> Counter[str]:
    """Send all inputs; how often each answer came. Inputs whose answer is none that is expected are written to `failed`."""
    found: Counter[str] = Counter()
    with httpx.Client(base_url=address, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

        def send(place: int, kind: str, body: bytes) -> str:
            try:
                answer = client.post("/v1/predictions", content=body, headers={"Content-Type": kind.encode()})
            except httpx.HTTPError as error:
                said = type(error).__name__
            else:
                if answer.status_code in EXPECTED:
                    return str(answer.status_code)
                said = str(answer.status_code)
            write_atomically(failed / f"{seed}-{place}-{said}.bin", f"{kind!r}\n".encode() + body)
            return f"{said}, which is a fault of ours"

        with ThreadPoolExecutor(clients) as pool:
            waiting = []
            for place, (kind, body) in enumerate(inputs(count, seed)):
                waiting.append(pool.submit(send, place, kind, body))
                if len(waiting) == 200 or place == count - 1:
                    found.update(future.result() for future in waiting)
                    waiting.clear()
                    print(f"{place + 1} of {count}", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, print what came of it; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for hostile.md and .json, and inputs that failed"
    )
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with served(folder) as (process, address):
            start = time.perf_counter()
            found = attack(address, options.inputs, options.seed, options.clients, options.out / "failed")
            seconds = time.perf_counter() - start
            ready = httpx.get(f"{address}/readyz", timeout=30).status_code == 200
            kept = httpx.get(f"{address}/v1/predictions?limit=1", timeout=30).json()["total"]
            lives = process.poll() is None
        engine = open_database(folder / "records")
        rows = verify(engine).rows
        engine.dispose()
    good = ready and lives and rows == kept and all(answer.isdigit() for answer in found)
    command = shlex.join(["python", "benchmarks/hostile.py", *(arguments or sys.argv[1:])])
    state = "lives and is ready" if ready and lives else "is dead or not ready"
    text = (
        f"{options.inputs:,} hostile inputs to the real process, seed {options.seed}, {options.clients} clients ({__version__})."
        f" Afterwards it {state}; {kept:,} images are kept, and the audit log of {rows:,} rows holds.\n\n"
        "| answer | inputs |\n| --- | --- |\n"
        + "".join(f"| {answer} | {count:,} |\n" for answer, count in sorted(found.items()))
        + f"\n`{command}`\n\n{NOTICE}\n"
    )
    print(text)
    document = {"answers": found, "ready": ready, "kept": kept, "trail": rows, "seconds": seconds, "command": command}
    write_atomically(options.out / "hostile.json", json.dumps(document, indent=2) + "\n")
    write_atomically(options.out / "hostile.md", text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
