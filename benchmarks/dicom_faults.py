"""Try to lose or double images and results: faults of the exchange between pneumoscope and a PACS, as real processes.

Each fault runs with a new data directory, a service, and one or two PACS that record what they store. Afterwards every instance
that was acknowledged must be stored, and predicted or answered, exactly once; each result must be in the PACS under one UID,
with the same bytes each time it was sent; no file may be left in the inbox; and the audit log must verify. The exit status is 1
if not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pneumoscope import __version__
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import DATABASE_FILE, open_database

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dicom_committing import answers
from dicom_nodes import (
    COMMITMENT_STEPS,
    STEPS,
    Instance,
    Pacs,
    Service,
    make_instances,
    send,
    send_until_acknowledged,
)

SETTLE_SECONDS, SECONDS_EACH = 600, 2  # and for each instance
KINDS = 2  # objects of each result
QUERY = (
    "import json, sqlite3, sys; connection = sqlite3.connect(sys.argv[1], uri=True, timeout=30);"
    "print(json.dumps(list(connection.execute(sys.argv[2]))))"
)


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        fault: Its name.
        sent: Different instances that were sent and acknowledged.
        attempts: Instances that were sent in all.
        stored: Records of them in the inbox.
        answered: Those that are predicted, recorded as unreadable, or recognized as own results.
        results: Objects that the outbox delivered.
        at_pacs: Different objects at the destinations.
        copies: Objects that the destinations received, with repeats.
        problems: What was lost, doubled or left.
    """

    fault: str
    sent: int
    attempts: int
    stored: int
    answered: int
    results: int
    at_pacs: int
    copies: int
    problems: list[str]


class World:
    """A service, its PACS, and what was sent.

    Args:
        folder: For all files.
        model: Folder of a bundle; the default model if None.
        count: Instances of a burst.
        seed: Of the instances and of the order.
    """

    def __init__(self, folder: Path, model: Path | None, count: int, seed: int = 0) -> None:
        self.folder, self.model, self.count, self.seed = folder, model, count, seed
        self.rng = random.Random(seed)
        self.pacs, self.other = Pacs(folder / "pacs"), Pacs(folder / "other")
        self.destinations = ["PACS"]
        self.sent: dict[str, Instance] = {}  # by content
        self.attempts = 0
        self.problems: list[str] = []
        self.mounted_by = 0  # id of the process that sees the disk of the data directory, if others do not
        self.peers = {"PACS": self.pacs.port, "OTHER": self.other.port}
        self.service = Service(folder / "service", self.peers, self.destinations, model=model)

    def new_service(self, **options: object) -> None:
        """Replace the service by one with other options, before it is started."""
        self.service = Service(self.folder / "service", self.peers, self.destinations, model=self.model, **options)  # type: ignore[arg-type]

    def instances(self, count: int = 0) -> list[Instance]:
        """Return instances of a burst."""
        return make_instances(count or self.count, seed=self.seed)

    def send(self, instances: Sequence[Instance]) -> None:
        """Send instances until they are acknowledged."""
        attempts = send_until_acknowledged(self.service.port, instances)
        self.attempts += attempts  # not in one statement: other threads send meanwhile
        self.sent.update({instance.to_json(): instance for instance in instances})

    def send_in_background(self, instances: Sequence[Instance]) -> threading.Thread:
        """Send instances in a thread, see `send`."""
        thread = threading.Thread(target=self.send, args=(instances,))
        thread.start()
        return thread

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Return the rows of a query of the service's database."""
        address = f"file:{self.service.data / DATABASE_FILE}?mode=ro"
        if self.mounted_by:
            command = ["nsenter", "-m", "-t", str(self.mounted_by), sys.executable, "-c", QUERY, address, statement]
            ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            return [tuple(row) for row in json.loads(ran.stdout)]
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=30)) as connection:
            return list(connection.execute(statement))

    def number(self, statement: str) -> int:
        """Return the number that a query returns."""
        return int(str(self.query(f"SELECT count(*) FROM {statement}")[0][0]))

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 0) -> None:
        """Wait for a condition, and note a problem if it does not come true."""
        seconds = seconds or SETTLE_SECONDS + SECONDS_EACH * self.count
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.problems.append(f"after {seconds:g} s {what}")
                return
            time.sleep(0.2)

    def settle(self) -> None:
        """Wait until nothing waits."""
        self.wait_until(lambda: not self.number("received_instances WHERE state = 'waiting'"), "instances wait")
        names = ", ".join(f"'{name}'" for name in self.destinations)
        self.wait_until(
            lambda: not self.number(f"outbox WHERE state = 'waiting' AND destination IN ({names})"), "results wait"
        )

    def retry(self) -> None:
        """Make all waiting results due now."""
        command = [
            sys.executable,
            "-m",
            "pneumoscope",
            "outbox",
            "retry",
            "--all",
            "--data-dir",
            str(self.service.data),
        ]
        subprocess.run(command, check=False, capture_output=True, timeout=120)

    def finish(self, fault: str) -> Row:
        """Let everything be delivered, stop all processes, check what is stored where, and return the row of the fault."""
        self.settle()
        if status := self.service.stop():
            self.problems.append(f"exit status {status}")
        self.pacs.stop()
        self.other.stop()
        stored = self.number("received_instances")
        answered = self.number("received_instances WHERE state IN ('predicted', 'unreadable', 'own_result')")
        given_up = self.number("received_instances WHERE state = 'unreadable'")
        self._compare("instances were given up, and {} should be", given_up, 0)
        predicted = self.number("(SELECT DISTINCT prediction_id FROM received_instances WHERE state = 'predicted')")
        results = {str(uid): str(name) for uid, name in self.query(
            "SELECT result_uid, destination FROM outbox WHERE state IN ('delivered', 'withdrawn')"
        )}  # fmt: skip
        copies = {**self.pacs.received(), **{f"OTHER {uid}": each for uid, each in self.other.received().items()}}
        expected = {uid if name == "PACS" else f"{name} {uid}" for uid, name in results.items()}
        self._compare("instances are stored, of {} that were acknowledged", stored, len(self.sent))
        self._compare("instances are answered, of {} that are stored", answered, stored)
        self._compare("predictions, of {} that instances have", self.number("predictions"), predicted)
        self._compare("events of predictions, of {}", self.number("audit_log WHERE event = 'predicted'"), predicted)
        missing, unknown = expected - copies.keys(), copies.keys() - expected
        differing = [uid for uid, hashes in copies.items() if len(set(hashes)) > 1]
        if missing or unknown or differing:
            self.problems.append(
                f"results: {len(missing)} missing, {len(unknown)} unknown, {len(differing)} with two contents"
            )
        doubled = self.number(
            "(SELECT 1 FROM outbox WHERE state = 'delivered' AND kind != 'rejection_note'"
            " GROUP BY sop_instance_uid, kind, destination, model_sha256, operating_point HAVING count(*) > 1)"
        )
        self._compare("results are doubled, and {} should be", doubled, 0)
        images = self.number("(SELECT DISTINCT sop_instance_uid FROM received_instances WHERE state = 'predicted')")
        delivered = self.number(
            "outbox WHERE state = 'delivered' AND kind != 'rejection_note' AND destination = 'PACS'"
        )
        self._compare("results are delivered to the first destination, of {}", delivered, KINDS * images)
        files = [path for path in (self.service.data / "inbox").rglob("*") if path.is_file()]
        self._compare("files in the inbox, not {}", len(files), 0)
        engine = open_database(self.service.data)
        verify(engine)
        engine.dispose()
        at_pacs, total = len(copies), sum(map(len, copies.values()))
        return Row(fault, len(self.sent), self.attempts, stored, answered, len(results), at_pacs, total, self.problems)

    def _compare(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            self.problems.append(f"{found} {what.format(expected)}")


# --- faults ---------------------------------------------------------------------------------------------------------


def kill_service(world: World) -> None:
    """SIGKILL of the service at each step from the reception to the record of the delivery, and at random times."""
    world.pacs.start()
    rounds = [*STEPS, "", ""]
    instances = world.instances(max(world.count, 3 * len(rounds)))  # the service must come to each step twice
    threads = []
    for number, step in enumerate(rounds):
        world.service.start(step, 2)
        threads.append(world.send_in_background(instances[number :: len(rounds)]))
        if step:
            world.service.wait_for_death()
        else:
            time.sleep(world.rng.random())
            world.service.kill()
    world.service.start()
    for thread in threads:
        thread.join()


def kill_service_during_commitment(world: World) -> None:
    """SIGKILL of the service at each step of a storage commitment; the PACS reports at once, or later, and then refuses first."""
    world.new_service(storage_commitment=True)
    # Each with whether the PACS reports on a separate association, and refuses each object first. In the first round, it has
    # refused all objects, and none is sent again yet.
    rounds = [
        ("report recorded, not answered", True),
        ("request recorded, not sent", False),
        ("request answered, not recorded", True),
        ("report received, not recorded", False),
        ("report received, not recorded", True),
    ]
    assert {step for step, _ in rounds} == COMMITMENT_STEPS.keys()
    instances = world.instances(max(world.count, len(rounds)))
    threads = []
    for number, (step, later) in enumerate(rounds):
        world.pacs.start(report_to=world.service.port if later else 0, refuses_first=later)
        # Requests of earlier rounds without a report are due again.
        world.service.clock.write_text(str(120 * number))
        world.service.start(step)
        threads.append(world.send_in_background(instances[number :: len(rounds)]))
        world.service.wait_for_death()
        if number == 0 and not world.number("outbox WHERE state = 'waiting' AND commitment_failures = 1"):
            world.problems.append("no refused result waits to be sent again")
        world.pacs.stop()
    world.pacs.start()
    world.service.clock.write_text(str(86_400))
    world.service.start()
    for thread in threads:
        thread.join()
    world.settle()
    world.wait_until(
        lambda: not world.number("outbox WHERE state = 'waiting' OR commitment != 'committed'"),
        "results are not committed",
    )
    copies = world.pacs.received()
    refused = {str(row[0]) for row in world.query("SELECT result_uid FROM outbox WHERE commitment_failures > 0")}
    if not refused or any(len(copies[uid]) == 1 for uid in refused):
        world.problems.append(f"not all of {len(refused)} refused results were sent again")
    recorded = {row[0] for row in world.query("SELECT result_uid FROM outbox WHERE commitment = 'committed'")}
    committed = {uid for uid, reason in answers(world.pacs.folder) if not reason}
    if recorded != committed:
        world.problems.append(
            f"{len(recorded)} results are committed, and the PACS committed itself to {len(committed)}"
        )


def kill_pacs(world: World) -> None:
    """SIGKILL of the PACS before and after it stores an instance."""
    world.service.start()
    world.pacs.start(2, "before")
    sending = world.send_in_background(world.instances())
    for moment in ("after", "before"):
        world.pacs.wait_for_death()
        world.pacs.start(2, moment)
        world.retry()
    world.pacs.wait_for_death()
    world.pacs.start()
    sending.join()
    world.retry()


def pacs_away(world: World) -> None:
    """Stop the PACS for the whole burst."""
    world.service.start()
    world.send(world.instances())
    world.wait_until(lambda: not world.number("received_instances WHERE state = 'waiting'"), "instances wait")
    world.wait_until(lambda: not world.number("outbox WHERE attempts = 0"), "no attempt was made")
    world.pacs.start()
    world.retry()


def cut_connections(world: World) -> None:
    """Cut connections in the middle of a PDU, at many positions; then send everything again."""
    world.pacs.start()
    world.service.start()
    instances = world.instances()
    for instance in instances:
        position = world.rng.randrange(20, 10_000)
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            thread = threading.Thread(target=_pass_bytes, args=(proxy, world.service.port, position))
            thread.start()
            send(int(proxy.getsockname()[1]), [instance])
            thread.join()
    world.send(instances)


def _pass_bytes(proxy: socket.socket, port: int, limit: int) -> None:
    """Connect one client to a port, and cut both connections after a number of bytes from the client."""
    proxy.settimeout(30)
    with proxy.accept()[0] as client, socket.create_connection(("127.0.0.1", port), 30) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while data := server.recv(4096):
                    client.sendall(data)

        client.settimeout(30)
        thread = threading.Thread(target=answer)
        thread.start()
        with contextlib.suppress(OSError):
            while limit > 0 and (data := client.recv(min(limit, 4096))):
                server.sendall(data)
                limit -= len(data)
        for each in (client, server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        thread.join(30)


def full_disk(world: World) -> None:
    """Fill the disk of the data directory while instances arrive, and while predictions are recorded."""
    script = 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$@"'
    world.service.data.mkdir(parents=True)
    within = ["unshare", "-m", "sh", "-c", script, str(world.service.data)]
    if subprocess.run([*within, "true"], capture_output=True, check=False, timeout=30).returncode:
        raise UnavailableError("mounting a small disk needs root")
    world.new_service(within=within, quiet_seconds=2)
    world.pacs.start()
    world.service.start()
    assert world.service.process
    seen = Path(f"/proc/{world.service.process.pid}/root{world.service.data}")
    world.mounted_by, filler = world.service.process.pid, seen / "filler"
    instances = world.instances()
    half = len(instances) // 2
    world.send(instances[:half])
    _fill(seen, filler)  # the first half is recorded on a full disk
    statuses = send(world.service.port, instances[half:])
    # Some may find room: files of the first half are removed when they are predicted.
    if not {0xA700} <= set(statuses) <= {0x0000, 0xA700, None}:
        world.problems.append(f"a full disk was answered by {sorted({f'{status or 0:04x}' for status in statuses})}")
    time.sleep(4)
    filler.unlink()
    world.send(instances)
    world.settle()
    # The disk vanishes with the process: a service continues with a copy, made while nothing is written.
    kept = shutil.copytree(seen, world.folder / "kept")
    world.service.kill()
    world.new_service()
    world.mounted_by = 0
    shutil.copytree(kept, world.service.data, dirs_exist_ok=True)
    world.service.start()


def _fill(folder: Path, filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        for size in (2**16, 2**12):
            with contextlib.suppress(OSError):
                while os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize >= size:
                    file.write(bytes(size))


def resend_shuffled(world: World) -> None:
    """Send everything three times, in a new order each time, on four associations."""
    world.pacs.start()
    world.service.start()
    instances = world.instances()
    for _ in range(3):
        world.rng.shuffle(instances)
        threads = [world.send_in_background(instances[number::4]) for number in range(4)]
        for thread in threads:
            thread.join()


def other_pixels(world: World) -> None:
    """Send instances with the same UIDs and other pixels: before the prediction, and after the delivery."""
    world.pacs.start()
    world.service.start()
    first = world.instances()
    world.send(first[::2])
    world.settle()
    second = make_instances(len(first), seed=world.seed + 1)
    for new, old in zip(second, first, strict=True):
        new.SOPInstanceUID = new.file_meta.MediaStorageSOPInstanceUID = old.SOPInstanceUID
    world.send([each for pair in zip(first[1::2], second[1::2], strict=True) for each in pair])
    world.send(second[::2])
    world.settle()
    kept = {row[0] for row in world.query(
        "SELECT sop_instance_uid FROM outbox JOIN received_instances USING (prediction_id, sop_instance_uid)"
        " WHERE outbox.state = 'delivered' AND kind = 'structured_report' AND received_instances.number IN"
        " (SELECT max(number) FROM received_instances GROUP BY sop_instance_uid)"
    )}  # fmt: skip
    if len(kept) != len(second):
        world.problems.append(f"{len(kept)} of {len(second)} results are of the last pixels")


def merged_patient(world: World) -> None:
    """Correct the patient before the prediction, and before the delivery: results have the new patient only."""
    world.service.start()
    first = world.instances()
    corrected = copy.deepcopy(first)
    for each in corrected:
        each.PatientID = f"MERGED {each.PatientID}"
    world.send([each for pair in zip(first[::2], corrected[::2], strict=True) for each in pair])
    world.send(first[1::2])
    world.wait_until(lambda: not world.number("received_instances WHERE state = 'waiting'"), "instances wait")
    world.send(corrected[1::2])
    world.wait_until(lambda: not world.number("received_instances WHERE state = 'waiting'"), "instances wait")
    world.pacs.start()
    world.retry()
    world.settle()
    wrong = sum(not str(each.PatientID).startswith("MERGED") for each in world.pacs.instances())
    if wrong:
        world.problems.append(f"{wrong} results have the patient before the merge")


def loops(world: World) -> None:
    """Let the PACS send all results back."""
    world.pacs.start()
    world.service.start()
    world.send(world.instances())
    world.settle()
    captures = [each for each in world.pacs.instances() if each.Modality != "SR"]
    for each in captures:
        each.remove_private_tags()
    world.send(captures)
    world.send(captures)


def failing_destination(world: World) -> None:
    """Name two destinations, of which one is never there."""
    world.destinations = ["OTHER", "PACS"]
    world.new_service()
    world.destinations = ["PACS"]  # of which the results must arrive
    world.pacs.start()
    world.service.start()
    world.send(world.instances())
    world.settle()
    waiting = world.number("outbox WHERE state = 'waiting' AND destination = 'OTHER'")
    if waiting != KINDS * world.count:
        world.problems.append(f"{waiting} results wait for the destination that is away")


def clock_jumps(world: World) -> None:
    """Set the clock forward and back by a year while instances and results wait."""
    world.new_service(quiet_seconds=2)
    world.service.start()
    instances = world.instances()
    for part, shift in ((instances[::3], 365), (instances[1::3], -365), (instances[2::3], 0)):
        world.send(part)
        world.service.clock.write_text(str(shift * 86_400))
        time.sleep(2)
    world.wait_until(lambda: not world.number("received_instances WHERE state = 'waiting'"), "instances wait", 60)
    world.pacs.start()
    world.service.clock.write_text(str(-365 * 86_400))
    world.settle()


def second_service(world: World) -> None:
    """Start a second service with the same data directory during the burst."""
    world.pacs.start()
    world.service.start()
    sending = world.send_in_background(world.instances())
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--data-dir", str(world.service.data)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if ended.returncode == 0 or "another process serves" not in ended.stderr:
        world.problems.append(f"the second service ended with status {ended.returncode}")
    sending.join()


def terminated(world: World) -> None:
    """SIGTERM in the middle of the burst, three times."""
    world.pacs.start()
    instances = world.instances()
    threads = []
    for number in range(3):
        world.service.start()
        threads.append(world.send_in_background(instances[number::3]))
        time.sleep(0.3 + world.rng.random())
        if status := world.service.stop():
            world.problems.append(f"exit status {status} after SIGTERM")
    world.service.start()
    for thread in threads:
        thread.join()


class UnavailableError(Exception):
    """A fault cannot be made on this machine, and why."""


FAULTS: dict[str, Callable[[World], None]] = {
    "service killed at each step": kill_service,
    "service killed during storage commitment": kill_service_during_commitment,
    "PACS killed while it receives": kill_pacs,
    "PACS away for the burst": pacs_away,
    "connection cut in a PDU": cut_connections,
    "disk full": full_disk,
    "sent three times, shuffled": resend_shuffled,
    "same UID, other pixels": other_pixels,
    "patient merged": merged_patient,
    "results sent back": loops,
    "one of two destinations away": failing_destination,
    "clock set by a year": clock_jumps,
    "second service": second_service,
    "SIGTERM in the burst": terminated,
}


def run_fault(name: str, folder: Path, model: Path | None, count: int, seed: int = 0) -> Row:
    """Make a fault, and return its row.

    Raises:
        UnavailableError: It cannot be made here.
    """
    world = World(folder, model, count, seed)
    try:
        FAULTS[name](world)
        return world.finish(name)
    finally:
        world.service.kill()
        world.pacs.stop()
        world.other.stop()


def to_markdown(rows: Sequence[Row], skipped: Sequence[str], command: str) -> str:
    """Return the table."""
    head = "fault | sent | attempts | stored | answered | results | at the PACS | copies | lost or doubled"
    lines = [f"| {head} |", "| --- |" + " --- |" * 8]
    for row in rows:
        numbers = " | ".join(f"{each:,}" for each in row[1:8])
        lines.append(f"| {row.fault} | {numbers} | {'; '.join(row.problems) or 'nothing'} |")
    lines += ["", *(f"Not made: {each}." for each in skipped)]
    text = (
        f"Faults of the exchange between pneumoscope {__version__} and a PACS as real processes. *Sent*: different instances that"
        " were acknowledged. *Attempts*: instances sent in all. *Results*: objects that the outbox delivered. *At the PACS*:"
        " different objects there; *copies*: with repeats, which have the same bytes."
    )
    return "\n".join([text, "", *lines, "", f"`{command}`", "", f"{NOTICE}", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the faults, print and write the table; return 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100, help="of a burst")
    parser.add_argument("--resent", type=int, default=2000, help="instances that are sent three times")
    parser.add_argument("--model", type=Path, help="folder of a bundle; default: the included model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(FAULTS), action="append", help="repeat for several")
    parser.add_argument("--out", type=Path, required=True, help="folder for faults.md and faults.json")
    options = parser.parse_args(arguments)
    rows, skipped = list[Row](), list[str]()
    for name in options.only or FAULTS:
        count = options.resent if FAULTS[name] is resend_shuffled else options.instances
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            try:
                rows.append(run_fault(name, Path(folder), options.model, count, options.seed))
            except UnavailableError as error:
                skipped.append(f"{name} ({error})")
                continue
            print(
                f"{name}: {time.perf_counter() - started:.0f} s, {rows[-1].problems or 'nothing lost or doubled'}",
                file=sys.stderr,
            )
    command = shlex.join(["python", "benchmarks/dicom_faults.py", *(arguments or sys.argv[1:])])
    text = to_markdown(rows, skipped, command)
    print(text)
    write_atomically(options.out / "faults.md", text)
    write_atomically(options.out / "faults.json", json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
