"""Kill archives at random moments, continue them, and compare every byte with undisturbed runs.

- local driver: the process that scores, when it reads an image of a random number.
- decode worker: a random one of the processes that decode.
- Ray driver, worker, node: with two nodes on the loopback interface; a node is killed with all of its processes.

Each archive has 60 drawn images in 15 shards; on Ray with heatmaps. A killed archive is continued until it is complete; then a
new one begins. The table has what `archive verify` found, and whether all files are those of an undisturbed run on the local
engine. The same command continues a run of this script that was stopped: complete archives are counted in the result.
"""

from __future__ import annotations

import argparse
import hashlib
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

from pneumoscope import __version__
from pneumoscope.archive.status import archive_status
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.files import write_atomically

SHARDS = 15
CLUSTER_SECONDS = 3 * 3600.0
WORKER_KILLS = 2  # in one run of a driver
Attack = Callable[[Path], int]


class Trial:
    """Archives under one kind of fault.

    Attributes:
        row: Numbers for the table.
    """

    def __init__(self, row: dict[str, Any], undisturbed: dict[str, bytes]) -> None:
        self._undisturbed = undisturbed
        self.row = row

    def run(self, folder: Path, kills: int, attack: Attack, save: Callable[[], None]) -> None:
        """Attack archives until there were so many kills.

        Args:
            folder: Folder of the archives.
            kills: Number of kills, of earlier runs, too.
            attack: Runs an archive, and returns the number of kills; the archive may be incomplete then.
            save: Called after each complete archive.
        """
        out = folder / "out"
        killed = 0
        while self.row["kills"] + killed < kills or out.exists():
            killed += attack(out)
            if out.exists() and any(each.shards == SHARDS for each in archive_status(out).sets):
                self._check(out, killed)
                shutil.rmtree(out)
                killed = 0
                save()
                print(self.row, flush=True)

    def _check(self, out: Path, killed: int) -> None:
        verified = verify_archive(out)
        self.row["kills"] += killed
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
                if workers := test_crashes.child_processes(process.pid):
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
        with test_ray.run_with_a_shard(source, out, bundle, address) as process:
            time.sleep(draw.uniform(0, 1))
            if process.poll() is None and kind == "driver":
                process.kill()
                killed = 1
            while kind == "worker" and process.poll() is None and killed < WORKER_KILLS:
                if tasks := test_ray.tasks():
                    os.kill(draw.choice(tasks), signal.SIGKILL)
                    killed += 1
                time.sleep(draw.uniform(0.5, 2))
            process.communicate(timeout=200)
        return killed

    return attack


def attack_node(source: Path, bundle: Path, address: str, draw: random.Random) -> Attack:
    """Return an attack that starts a second node, and kills it."""

    def attack(out: Path) -> int:
        with (
            test_ray.node("--address", address, "--node-ip-address", "127.0.0.2") as second,
            test_ray.run_with_a_shard(source, out, bundle, address) as process,
        ):
            time.sleep(draw.uniform(0, 1))
            was_running = process.poll() is None
            test_ray.kill_node(second)
            process.communicate(timeout=300)
        return int(was_running)

    return attack


def describe_software() -> str:
    """Return the version, and the commit that last changed the code. Changes that are not committed count as another one."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, "--", "src/pneumoscope"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    changes = git("diff", "HEAD")
    changed = f" with changes {hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else ""
    return f"{__version__}, {git('log', '-1', '--format=%h')}{changed}"


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    columns = list(dict.fromkeys(column for row in result["faults"] for column in row))
    lines = [
        "# Faults of archives",
        "",
        f"Random kills with seed {result['seed']}, on {os.cpu_count()} cores. `equal`: archives whose files are all those of an"
        " undisturbed run.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- |" + " --- |" * (len(columns) - 1),
        *(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in result["faults"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run all faults, and write faults.json and faults.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=50, help="kills of the local driver, of decode workers, and on Ray"
    )
    parser.add_argument("--engine", choices=["local", "ray"], nargs="+", default=["local", "ray"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/archive"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = draw_images(folder / "images", 4 * SHARDS)
        bundle = Maker(folder).bundle(folder / "bundle", rejection_limits=LIMITS)
        score(source, folder / "undisturbed", bundle)
        local = contents(folder / "undisturbed")
        score(source, folder / "undisturbed", bundle, heatmaps=True)
        with_heatmaps = contents(folder / "undisturbed")
        software = describe_software()
        file = arguments.out / "faults.json"
        result = json.loads(file.read_text()) if file.exists() else {"seed": arguments.seed, "faults": []}

        def run(fault: str, kills: int, attack: Callable[[random.Random], Attack]) -> None:
            row = next((each for each in result["faults"] if each["fault"] == fault), None)
            if row is None or row.get("software") != software:
                # Kills of other software say nothing about this one.
                place = len(result["faults"]) if row is None else result["faults"].index(row)
                row = {"fault": fault, "software": software}
                row |= {"kills": 0, "archives": 0, "images": 0, "not in one row": 0, "equal": 0}
                result["faults"][place : place + 1] = [row]
            draw = random.Random(f"{result['seed']} {fault} {row['kills']}")
            undisturbed = with_heatmaps if fault.startswith("Ray") else local
            Trial(row, undisturbed).run(folder, kills, attack(draw), lambda: save(result, arguments.out))

        if "local" in arguments.engine:
            run("local driver", arguments.kills, lambda draw: attack_driver(source, bundle, draw))
            run("decode worker", arguments.kills, lambda draw: attack_workers(source, bundle, draw))
        if "ray" in arguments.engine:
            with test_ray.cluster(CLUSTER_SECONDS) as (address, _):
                drivers, nodes = 2 * arguments.kills // 5, arguments.kills // 4
                workers = arguments.kills - drivers - nodes
                run("Ray driver", drivers, lambda draw: attack_ray(source, bundle, address, draw, "driver"))
                run("Ray worker", workers, lambda draw: attack_ray(source, bundle, address, draw, "worker"))
                run("Ray node", nodes, lambda draw: attack_node(source, bundle, address, draw))


def save(result: dict[str, Any], out: Path) -> None:
    """Write faults.json and faults.md."""
    write_atomically(out / "faults.json", json.dumps(result, indent=1) + "\n")
    write_atomically(out / "faults.md", markdown(result))


if __name__ == "__main__":
    main()
