"""Kill archives at random moments, continue them, and compare every byte with undisturbed runs.

- local driver: the process that scores, when it reads an image of a random number.
- decode worker: a random one of the processes that decode.
- Ray driver, worker, node: with two nodes on the loopback interface; a node is killed with all of its processes.

Each archive has 60 drawn images in 15 shards. A killed archive is continued until it is complete; then a new one begins.
The table has what `archive verify` found, and whether all files are those of an undisturbed run on the local engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.archive import test_crashes, test_ray
from tests.archive.archives import contents, draw_images, score, score_command
from tests.conftest import LIMITS, Maker
from tests.processes import started

from pneumoscope.archive.status import archive_status
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.files import write_atomically

SHARDS = 15
Attack = Callable[[Path], int]


class Trial:
    """Archives under one kind of fault.

    Attributes:
        row: Numbers for the table.
    """

    def __init__(self, name: str, undisturbed: dict[str, bytes]) -> None:
        self._undisturbed = undisturbed
        self.row: dict[str, Any] = {
            "fault": name,
            "kills": 0,
            "archives": 0,
            "images": 0,
            "not in one row": 0,
            "equal": 0,
        }

    def run(self, folder: Path, kills: int, attack: Attack) -> None:
        """Attack archives until there were so many kills.

        Args:
            folder: Folder of the archives.
            kills: Number of kills.
            attack: Runs an archive, and returns the number of kills; the archive may be incomplete then.
        """
        out = folder / "out"
        while self.row["kills"] < kills or out.exists():
            self.row["kills"] += attack(out)
            if out.exists() and any(each.shards == SHARDS for each in archive_status(out).sets):
                self._check(out)
                shutil.rmtree(out)
        print(self.row, flush=True)

    def _check(self, out: Path) -> None:
        verified = verify_archive(out)
        self.row["archives"] += 1
        self.row["images"] += verified.rows
        self.row["not in one row"] += verified.rows - verified.found + len(verified.problems)
        self.row["equal"] += contents(out) == self._undisturbed


def attack_driver(source: Path, bundle: Path, draw: random.Random) -> Attack:
    """Return an attack that kills the process that scores."""

    def attack(out: Path) -> int:
        command = test_crashes.slowed(score_command(source, out, bundle), 0.005)
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            reads = draw.randrange(1, 40)
            while reads and (line := process.stdout.readline()):
                reads -= line == "reading\n"
            time.sleep(draw.uniform(0, 0.05))
            was_running = process.poll() is None
            process.kill()
            process.communicate(timeout=60)
        return int(was_running)

    return attack


def attack_workers(source: Path, bundle: Path, draw: random.Random) -> Attack:
    """Return an attack that kills processes that decode."""

    def attack(out: Path) -> int:
        stopped, killed = threading.Event(), 0

        def kill() -> None:
            nonlocal killed
            while not stopped.wait(draw.uniform(1, 2)):
                if workers := test_crashes._children(process.pid):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    killed += 1

        command = test_crashes.slowed(score_command(source, out, bundle), 0.2)
        with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
            process.wait(120)
            stopped.set()
            killer.join(10)
        return killed

    return attack


def attack_ray(source: Path, bundle: Path, address: str, draw: random.Random, kind: str) -> Attack:
    """Return an attack on the driver, a worker or a node of Ray."""

    def attack(out: Path) -> int:
        killed = 0
        with test_ray.slow_run(source, out, bundle, address) as process:
            time.sleep(draw.uniform(0, 1))
            if process.poll() is None and kind == "driver":
                process.kill()
                killed = 1
            elif process.poll() is None and (tasks := test_ray.tasks()):
                os.kill(draw.choice(tasks), signal.SIGKILL)
                killed = 1
            process.communicate(timeout=150)
        return killed

    return attack


def attack_node(source: Path, bundle: Path, address: str, draw: random.Random) -> Attack:
    """Return an attack that starts a second node, and kills it."""

    def attack(out: Path) -> int:
        with (
            test_ray.node("--address", address, "--node-ip-address", "127.0.0.2") as second,
            test_ray.slow_run(source, out, bundle, address) as process,
        ):
            time.sleep(draw.uniform(0, 1))
            was_running = process.poll() is None
            test_ray.kill_node(second)
            process.communicate(timeout=200)
        return int(was_running)

    return attack


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    columns = list(result["faults"][0])
    lines = [
        "# Faults of archives",
        "",
        f"Random kills with seed {result['seed']}, on {os.cpu_count()} cores. `equal`: archives whose files are all those of an"
        " undisturbed run.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- |" + " --- |" * (len(columns) - 1),
        *(f"| {' | '.join(str(row[column]) for column in columns)} |" for row in result["faults"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run all faults, and write faults.json and faults.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills of the local driver; of others, fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/archive"))
    arguments = parser.parse_args()
    draw, few = random.Random(arguments.seed), max(1, arguments.kills // 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = draw_images(folder / "images", 4 * SHARDS)
        bundle = Maker(folder).bundle(folder / "bundle", rejection_limits=LIMITS)
        score(source, folder / "undisturbed", bundle)
        undisturbed = contents(folder / "undisturbed")
        rows: list[dict[str, Any]] = []

        def run(fault: str, kills: int, attack: Attack) -> None:
            trial = Trial(fault, undisturbed)
            trial.run(folder, kills, attack)
            rows.append(trial.row)
            result = {"seed": arguments.seed, "kills": arguments.kills, "faults": rows}
            write_atomically(arguments.out / "faults.json", json.dumps(result, indent=1) + "\n")
            write_atomically(arguments.out / "faults.md", markdown(result))

        run("local driver", arguments.kills, attack_driver(source, bundle, draw))
        run("decode worker", arguments.kills, attack_workers(source, bundle, draw))
        with test_ray.cluster() as address:
            run("Ray driver", few, attack_ray(source, bundle, address, draw, "driver"))
            run("Ray worker", few, attack_ray(source, bundle, address, draw, "worker"))
            run("Ray node", max(1, few // 2), attack_node(source, bundle, address, draw))


if __name__ == "__main__":
    main()
