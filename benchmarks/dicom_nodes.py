"""Start pneumoscope and a PACS as processes on this machine, and send DICOM instances between them.

`dicom_faults`, `dicom_hostile` and `dicom` share these. As a program, this file is one of the processes:

    python benchmarks/dicom_nodes.py pacs PORT FOLDER DIE_AT MOMENT REPORT_TO REFUSES_FIRST
    python benchmarks/dicom_nodes.py serve STEP NUMBER CLOCK_FILE ...   (arguments of `pneumoscope serve`)
"""

from __future__ import annotations

import contextlib
import datetime as datetime_module
import functools
import hashlib
import importlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    DigitalXRayImageStorageForPresentation,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
)

from pneumoscope.evaluation.image_variants import encode_dicom
from pneumoscope.imaging.phantom import draw_phantom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from tests.processes import free_port

from dicom_committing import CommittingPacs

START_SECONDS, TIMEOUT = 120, 60
NODE, SENDER = "PNEUMOSCOPE", "MODALITY"
RESULT_CLASSES = (
    SecondaryCaptureImageStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage, KeyObjectSelectionDocumentStorage,
)  # fmt: skip
# Modules that read the clock, and names of functions before or after which a service is killed.
CLOCKS = (
    "dicom.processing", "dicom.outcomes", "dicom.delivery", "dicom.receiver",
    "storage.inbox", "storage.repository", "storage.outbox",
)  # fmt: skip
STEPS = {
    "receive": ("dicom.processing", "InstanceProcessor.receive", "before"),
    "file written": ("storage.blob_store", "FolderBlobStore.stage", "after"),
    "row written, not committed": ("storage.inbox", "replace_header", "after"),
    "row committed, not acknowledged": ("storage.inbox", "Inbox._add", "after"),
    "prediction written, not committed": ("dicom.outcomes", "OutcomeRecorder.record", "after"),
    "prediction committed, file not removed": ("storage.inbox", "Inbox.remove_file", "before"),
    "file removed": ("storage.inbox", "Inbox.remove_file", "after"),
    "delivery begun": ("storage.outbox", "Outbox.begin", "after"),
    "sent, not recorded": ("dicom.delivery", "_DicomSender.send", "after"),
    "delivery recorded": ("storage.outbox", "Outbox.record_delivered", "after"),
}
COMMITMENT_STEPS = {
    "request recorded, not sent": ("dicom.commitment", "_request", "before"),
    "request answered, not recorded": ("dicom.commitment", "_request", "after"),
    "report received, not recorded": ("storage.commitments", "Commitments.record_report", "before"),
    "report recorded, not answered": ("storage.commitments", "Commitments.record_report", "after"),
}
Instance = pydicom.Dataset


def make_instances(count: int, *, seed: int = 0, size: int = 64, studies: int = 0) -> list[Instance]:
    """Return different phantoms with their own UIDs and patients, in a number of studies; one each if 0."""
    instances, rng = [], random.Random(seed)
    gray = [draw_phantom(rng.randrange(1000), pneumonia=number % 2 == 1, size=size) for number in range(min(count, 16))]
    for number in range(count):
        pixels = gray[number % len(gray)].copy()
        pixels[0, :8] = list(
            (seed * 1_000_003 + number).to_bytes(8, "big")
        )  # in a corner: other pixels, another prediction
        instance = pydicom.dcmread(io.BytesIO(encode_dicom(pixels)))
        study = number % studies if studies else number
        name = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"2.25.{int(name[:30], 16)}"
        instance.StudyInstanceUID = f"2.25.{seed + 1}{study:08}"
        instance.SeriesInstanceUID = f"{instance.StudyInstanceUID}.1"
        instance.PatientID, instance.PatientName, instance.PatientAge = f"P{study}", f"Phantom^{study}", "003Y"
        instances.append(instance)
    return instances


# --- the PACS -------------------------------------------------------------------------------------------------------


class Pacs:
    """A PACS as a process, which writes each instance to a folder and records its UID and hash before it answers.

    Args:
        folder: Kept when the process is started again.
        port: The same each time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[str] | None = None

    def start(self, die_at: int = 0, moment: str = "", *, report_to: int = 0, refuses_first: bool = False) -> None:
        """Start the process; it kills itself at an instance of a number, "before" or "after" writing it, if one is stated.

        `report_to` and `refuses_first` are those of `dicom_committing.CommittingPacs`.
        """
        options = [str(die_at), moment, str(report_to), "refuses" if refuses_first else ""]
        command = [sys.executable, __file__, "pacs", str(self.port), str(self.folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline(), "the PACS does not start"

    def stop(self) -> None:
        """Kill the process if it runs."""
        if self.process:
            self.process.kill()
            self.process.communicate(timeout=TIMEOUT)
            self.process = None

    def wait_for_death(self) -> None:
        """Wait until the process has killed itself."""
        assert self.process
        assert self.process.wait(TIMEOUT) == -signal.SIGKILL
        self.stop()

    def received(self) -> dict[str, list[str]]:
        """Return the hashes of the instances that were written, by UID, one for each time."""
        found: dict[str, list[str]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "received.jsonl").read_text().splitlines():
                uid, sha256 = json.loads(line)
                found.setdefault(uid, []).append(sha256)
        return found

    def instances(self) -> list[Instance]:
        """Return one copy of each instance."""
        return [pydicom.dcmread(path) for path in sorted(self.folder.glob("*.dcm"))]


def run_pacs(port: str, folder: str, die_at: str, moment: str, report_to: str, refuses_first: str) -> None:
    """Be a PACS."""
    committing = CommittingPacs(Path(folder), "PACS", NODE, int(report_to), refuses_first=bool(refuses_first))
    lock, counts = threading.Lock(), {"received": 0}

    def die(now: str) -> None:
        if counts["received"] == int(die_at) and now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def store(event: evt.Event) -> int:
        content = event.encoded_dataset()
        uid = str(event.request.AffectedSOPInstanceUID)
        with lock:
            counts["received"] += 1
            die("before")
            Path(folder, f"{uid}.dcm").write_bytes(content)
            with Path(folder, "received.jsonl").open("a") as file:
                file.write(json.dumps([uid, hashlib.sha256(content).hexdigest()]) + "\n")
                file.flush()
                os.fsync(file.fileno())
            die("after")
        return 0x0000

    ae = AE("PACS")
    for sop_class in (*RESULT_CLASSES, DigitalXRayImageStorageForPresentation):
        ae.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    ae.add_supported_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_N_ACTION, committing.act)]
    ae.start_server(("127.0.0.1", int(port)), block=False, evt_handlers=handlers)
    print("listening", flush=True)
    threading.Event().wait()


# --- the service ----------------------------------------------------------------------------------------------------


class Service:
    """pneumoscope as a process with a DICOM node on a fixed port.

    Args:
        folder: Holds the data directory, the configuration and the log.
        peers: Ports of the peers by name; "MODALITY" is always one.
        destinations: Names of peers that get results.
        model: Folder of a bundle; the default model if None.
        options: Further options of `pneumoscope serve`.
        within: A command that runs the service's command.
        quiet_seconds: Of the configuration.
        storage_commitment: Whether the destinations are asked for storage commitment, again after a minute without a report.
    """

    def __init__(
        self,
        folder: Path,
        peers: Mapping[str, int],
        destinations: Sequence[str],
        *,
        model: Path | None = None,
        options: Sequence[str] = (),
        within: Sequence[str] = (),
        quiet_seconds: float = 0,
        storage_commitment: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.data, self.port = folder, folder / "data", free_port()
        self.clock = folder / "clock"
        self._within, self._model, self._options = list(within), model, list(options)
        lines = [f"quiet_seconds = {quiet_seconds}", f"[node]\nport = {self.port}"]
        for name, port in {SENDER: 1, **peers}.items():
            lines.append(f'[[peers]]\nname = "{name}"\nae_title = "{name}"\nhost = "127.0.0.1"\nport = {port}')
        asked = "\nstorage_commitment = true\ncommitment_seconds = 60" if storage_commitment else ""
        lines += [f'[[destinations]]\npeer = "{name}"{asked}' for name in destinations]
        text = "\n".join(lines if destinations else ["destinations = []", *lines])
        (folder / "dicom.toml").write_text(text + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self._log = folder / "log.txt"
        self._log.touch()

    def start(self, step: str = "", number: int = 1) -> None:
        """Start the process; it kills itself at the step of a name, when it comes to it for a number of times."""
        start = self._log.stat().st_size
        model = ["--model", str(self._model)] if self._model else []
        command = [
            *self._within, sys.executable, __file__, "serve", step, str(number), str(self.clock), "--port", "0",
            "--data-dir", str(self.data), "--dicom-config", str(self.folder / "dicom.toml"), *model, *self._options,
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, cwd=self.folder)
        deadline = time.monotonic() + START_SECONDS
        while True:
            text = self._log.read_bytes()[start:].decode()
            if found := re.search(r"(http://\S+) .*\nDICOM node ", text):
                self.url = found[1]
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service does not start: {text}")
            time.sleep(0.05)

    def log(self) -> str:
        """Return what the process wrote to standard error."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the process if it runs."""
        if self.process:
            self.process.kill()
            self.process.wait(TIMEOUT)
            self.process = None

    def wait_for_death(self) -> None:
        """Wait until the process has killed itself."""
        assert self.process
        assert self.process.wait(2 * TIMEOUT) == -signal.SIGKILL
        self.process = None

    def stop(self) -> int:
        """Terminate the process, and return its exit status."""
        assert self.process
        self.process.terminate()
        status = self.process.wait(2 * TIMEOUT)
        self.process = None
        return status

    def count(self, path: str) -> int:
        """Return the `total` of a list in the API."""
        return int(httpx.get(f"{self.url}{path}", params={"limit": 1}, timeout=TIMEOUT).json()["total"])


def run_service(step: str, number: str, clock: str, *arguments: str) -> None:
    """Be the service, perhaps one that kills itself at a step, with a clock that a file of seconds can shift."""
    if step:
        _kill_at(*(STEPS | COMMITMENT_STEPS)[step], int(number))
    _shift_clock(Path(clock))
    from pneumoscope.cli import main

    sys.argv = ["pneumoscope", "serve", *arguments]
    main()


def _kill_at(module: str, name: str, moment: str, number: int) -> None:
    owner: Any = importlib.import_module(f"pneumoscope.service.{module}")
    *path, last = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    function, count, lock = getattr(owner, last), 0, threading.Lock()

    @functools.wraps(function)
    def killing(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            mine = count == number
        if mine and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, killing)


def _shift_clock(file: Path) -> None:
    class Shifted(datetime_module.datetime):
        @classmethod
        def now(cls, tz: datetime_module.tzinfo | None = None) -> Any:
            shift = float(file.read_text()) if file.exists() else 0
            return datetime_module.datetime.now(tz) + datetime_module.timedelta(seconds=shift)

    for name in CLOCKS:
        module: Any = importlib.import_module(f"pneumoscope.service.{name}")
        if getattr(module, "datetime", None) is datetime_module.datetime:
            module.datetime = Shifted


# --- the sender -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def association(port: int, *, title: str = SENDER, called: str = NODE) -> Iterator[Any]:
    """Yield an association, which may not be established."""
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = TIMEOUT
    for sop_class in (DigitalXRayImageStorageForPresentation, SecondaryCaptureImageStorage):
        ae.add_requested_context(sop_class, [ExplicitVRLittleEndian])
    opened = ae.associate("127.0.0.1", port, ae_title=called)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()
        if opened.dul.socket and opened.dul.socket.socket:
            opened.dul.socket.socket.close()


def send(port: int, instances: Sequence[Instance], *, each: Callable[[], None] = lambda: None) -> list[int | None]:
    """Send instances on one association, and return the statuses; None for each one that was not answered."""
    statuses: list[int | None] = []
    with association(port) as opened:
        for instance in instances:
            status = None
            if opened.is_established:
                with contextlib.suppress(RuntimeError):  # the association was closed
                    answer = opened.send_c_store(instance)
                    status = int(answer.Status) if "Status" in answer else None
            statuses.append(status)
            each()
    return statuses


def send_until_acknowledged(port: int, instances: Sequence[Instance], seconds: float = 600) -> int:
    """Send instances as a PACS does, again until each is acknowledged, and return the number of attempts."""
    attempts, rest, deadline = 0, list(instances), time.monotonic() + seconds
    while rest:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(rest)} instances are not acknowledged after {seconds} s")
        statuses = send(port, rest)
        attempts += sum(status is not None for status in statuses)
        rest = [instance for instance, status in zip(rest, statuses, strict=True) if status != 0x0000]
        if rest:
            time.sleep(0.2)
    return attempts


if __name__ == "__main__":
    {"pacs": run_pacs, "serve": run_service}[sys.argv[1]](*sys.argv[2:])
