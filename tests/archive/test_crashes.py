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


def test_a_kill_at_any_step_costs_only_the_shard_in_flight(tmp_path: Path, bundle: Path) -> None:
    source = draw_images(tmp_path / "images", 7)
    score(source, tmp_path / "undisturbed", bundle)
    undisturbed = contents(tmp_path / "undisturbed")
    seen: set[str] = set()
    for number in range(200):
        out = tmp_path / f"out {number}"
        steps, killed = steps_until_killed(source, out, bundle, number)
        seen |= {step.partition(" ")[0] for step in steps}
        entered = archive_status(out).sets if (out / "archive.json").exists() and killed else ()
        before = {each.shards for each in entered}
        scored = score(source, out, bundle)
        assert scored.shards == 2 - max(before, default=0), steps  # nothing is scored twice, and nothing is left
        assert_complete(out, undisturbed)
        shutil.rmtree(out)
        if not killed:
            break
    assert number > 20
    assert seen == {"open", "half", "fsync", "rename"}


def test_twenty_kills_at_random_moments_change_nothing(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes]
) -> None:
    """A killed run may have done nothing: the moments are spread over the time of one run."""
    draw, out, kills, seconds = random.Random(5), tmp_path / "out", 0, 0.0
    command = score_command(source, out, bundle)
    done: set[int] = set()
    while kills < 20:
        began = time.monotonic()
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                process.wait(draw.uniform(0.3, max(1.0, 1.2 * seconds)))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            output, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), output
        if process.returncode == 0:
            seconds = time.monotonic() - began
            assert_complete(out, undisturbed)
            shutil.rmtree(out)
        elif (out / "archive.json").exists():
            done.update(each.shards for each in archive_status(out).sets)
    assert run_cli(*command[4:]).returncode == 0
    assert_complete(out, undisturbed)
    assert len(done) > 1  # some runs were killed in the middle


def test_killed_decode_workers_cost_nothing(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes]
) -> None:
    out, stopped, killed = tmp_path / "out", threading.Event(), []

    def kill_workers() -> None:
        draw = random.Random(6)
        while not stopped.wait(draw.uniform(0.2, 0.5)):
            workers = _children(os.getpid())
            if workers:
                os.kill(victim := draw.choice(workers), signal.SIGKILL)
                killed.append(victim)

    killer = threading.Thread(target=kill_workers, daemon=True)
    killer.start()
    try:
        scored = score(source, out, bundle)
    finally:
        stopped.set()
        killer.join(10)
    assert killed
    assert scored.failed == 0
    assert_complete(out, undisturbed)


def _children(parent: int) -> list[int]:
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
    command = score_command(source, out, bundle, "--workers", "1")
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        _wait_for(lambda: (out / "archive.log").exists())
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Interrupted. Run the same command again to continue" in output
    (status,) = archive_status(out).sets
    assert 0 < status.shards < 15
    assert len(contents(out)) == status.shards + 2  # with two files of the listing
    assert run_cli(*command[4:]).returncode == 0
    assert_complete(out, undisturbed)


def _wait_for(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


SLOW_READER = """
import sys, time
from pneumoscope.archive import sources
read = sources.LocalReader.read
def slow(self, name):
    print("reading", flush=True)
    time.sleep(1)
    return read(self, name)
sources.LocalReader.read = slow
from pneumoscope.cli import main
main()
"""


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, source: Path, bundle: Path) -> None:
    command = [sys.executable, "-c", SLOW_READER, *score_command(source, tmp_path / "out", bundle)[3:]]
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
