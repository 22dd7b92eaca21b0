"""Kill a run at every step and at random moments, and continue: every image is scored once, to the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.archive.archives import contents, draw_images, run_cli, score, score_command
from tests.archive.crash_steps import steps_until_killed
from tests.processes import started

from pneumoscope.archive.readers import LocalReader
from pneumoscope.archive.status import archive_status
from pneumoscope.archive.verify import verify_archive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("source") / "images", 60)


@pytest.fixture(scope="module")
def undisturbed(source: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    score(source, out, bundle)
    return contents(out)


def assert_complete(out: Path, undisturbed: dict[str, bytes]) -> None:
    verified = verify_archive(out)
    assert verified.problems == ()
    assert contents(out) == undisturbed
    assert not list(out.rglob(".*"))


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_any_step_costs_only_the_shard_in_flight(tmp_path: Path, bundle: Path, part: int) -> None:
    source = draw_images(tmp_path / "images", 7)
    score(source, tmp_path / "undisturbed", bundle, heatmaps=True)
    undisturbed = contents(tmp_path / "undisturbed")
    seen: set[str] = set()
    for number in range(part, 200, PARTS):
        out = tmp_path / f"out {number}"
        steps, killed = steps_until_killed(source, out, bundle, number)
        seen |= {step.partition(" ")[0] for step in steps}
        entered = archive_status(out).sets if (out / "archive.json").exists() else ()
        before = {each.shards for each in entered}
        scored = score(source, out, bundle, heatmaps=True)
        assert scored.shards == 2 - max(before, default=0), steps  # nothing is scored twice, and nothing is left
        assert_complete(out, undisturbed)
        shutil.rmtree(out)
        if not killed:
            break
    assert number > 20
    assert seen == {"open", "half", "fsync", "rename"}


SLOW = """
import os, sys, time
from pneumoscope.archive import readers
read, seconds = readers.LocalReader.read, float(sys.argv.pop(1))
def slow(self, name):
    os.write(1, b"reading\\n")  # one write: several threads read, and print() writes the end of the line apart
    time.sleep(seconds)
    return read(self, name)
readers.LocalReader.read = slow
from pneumoscope.cli import main
main()
"""


def slowed(command: list[str], seconds: float) -> list[str]:
    """Return a command that takes some time to read each image."""
    return [sys.executable, "-c", SLOW, str(seconds), *command[3:]]


def test_twenty_kills_at_random_moments_change_nothing(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes]
) -> None:
    """Each run is killed when it reads an image of a random number; what was killed is continued."""
    draw, out, seen = random.Random(5), tmp_path / "out", set()
    command = slowed(score_command(source, out, bundle), 0.005)
    for _ in range(20):
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            reads = draw.randrange(1, 30)
            while reads and (line := process.stdout.readline()):
                reads -= line == "reading\n"
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
            output, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), output
        (status,) = archive_status(out).sets
        seen.add(status.shards)
        if status.shards == 15:
            assert_complete(out, undisturbed)
            shutil.rmtree(out)
    assert run_cli(*score_command(source, out, bundle)[4:]).returncode == 0
    assert_complete(out, undisturbed)
    assert len(seen) > 5  # different shards were in flight


def test_killed_decode_workers_cost_nothing(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stopped, killed, read = tmp_path / "out", threading.Event(), [], LocalReader.read

    def slow(self: LocalReader, name: str) -> bytes:
        time.sleep(0.2)
        return read(self, name)

    def kill_workers() -> None:
        draw = random.Random(6)
        # Two: a worker that is killed at all of its three starts is an error.
        while len(killed) < 2 and not stopped.wait(draw.uniform(0.5, 1.5)):
            workers = child_processes(os.getpid())
            if workers:
                os.kill(victim := draw.choice(workers), signal.SIGKILL)
                killed.append(victim)

    monkeypatch.setattr(LocalReader, "read", slow)
    killer = threading.Thread(target=kill_workers, daemon=True)
    killer.start()
    try:
        scored = score(source, out, bundle)
    finally:
        stopped.set()
        killer.join(10)
    assert len(killed) == 2
    assert scored.failed == 0
    assert_complete(out, undisturbed)


def child_processes(parent: int) -> list[int]:
    """Return the processes that this one started to decode."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and b"sandbox.worker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_ctrl_c_finishes_the_shards_in_flight_and_a_second_one_stops(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    command = slowed(score_command(source, out, bundle, "--workers", "1"), 0.02)
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        _wait_for(lambda: (out / "archive.log").exists())
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Finishing the shards in flight; press Ctrl-C again to stop at once" in output
    assert "Interrupted. Run the same command again to continue" in output
    (status,) = archive_status(out).sets
    assert 0 < status.shards < 15
    assert len(contents(out)) == status.shards + 2  # with two files of the listing
    assert run_cli(*score_command(source, out, bundle)[4:]).returncode == 0
    assert_complete(out, undisturbed)


def _wait_for(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, source: Path, bundle: Path) -> None:
    command = slowed(score_command(source, tmp_path / "out", bundle), 1)
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 3.5  # a shard takes four seconds
    assert list((tmp_path / "out").glob("predictions/*/shard-*")) == []
