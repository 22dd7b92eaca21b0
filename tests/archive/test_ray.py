"""Scoring on Ray: two nodes on the loopback interface, and kills of the driver, of workers and of a node."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import pytest
from tests.archive.archives import contents, draw_images, run_cli, score, score_command
from tests.processes import free_port, started

from pneumoscope.archive import ray_engine
from pneumoscope.archive.status import archive_status
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.errors import UsageError

pytest.importorskip("ray", reason="Ray is not installed (the extra [archive])")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DEADLINE = 550.0
ENVIRONMENT = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # nothing else on this machine may send tasks, and no token is written to the home folder
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",  # a process that the client's server starts, on a busy machine
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # otherwise the server of clients sometimes cannot start it (ray-project/ray#63202)
    "OMP_NUM_THREADS": "1",
    "no_proxy": "127.0.0.1,127.0.0.2",
}


@contextlib.contextmanager
def node(*options: str, deadline: float = DEADLINE) -> Iterator[subprocess.Popen[str]]:
    """Start a node with one core, and kill all of its processes when the block is done."""
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--num-cpus",
        "1",
        "--disable-usage-stats",
    ]
    command += ["--object-store-memory", "80000000", *options]
    with started(
        command, deadline=deadline, env=ENVIRONMENT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            lines = []
            while "will now block forever" not in "".join(lines[-1:]):
                lines.append(process.stdout.readline())
                assert lines[-1], "".join(lines)
            yield process
        finally:
            kill_node(process)


def kill_node(process: subprocess.Popen[str]) -> None:
    """Kill all processes of a node, which are in the session that its first process leads."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(path.name)) == process.pid:
                os.kill(int(path.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def address(running: Cluster) -> str:
    return running.address


class Cluster(NamedTuple):
    """A running cluster.

    Attributes:
        address: Of its first node.
        client_address: For clients of Ray, which run elsewhere.
    """

    address: str
    client_address: str


@contextlib.contextmanager
def cluster(deadline: float = DEADLINE) -> Iterator[Cluster]:
    """Start a cluster of one node for so many seconds. Ports below 20,000 are those of its workers."""
    port, client_port = (next(filter(lambda port: port >= 20_000, iter(free_port, None))) for _ in range(2))
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # short, for the names of sockets
    options = (
        "--head",
        "--port",
        str(port),
        "--include-dashboard",
        "false",
        "--ray-client-server-port",
        str(client_port),
    )
    with node(*options, "--node-ip-address", "127.0.0.1", "--temp-dir", str(folder), deadline=deadline):
        yield Cluster(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}")
    subprocess.run(["rm", "-rf", folder], check=True, timeout=60)


@pytest.fixture
def second_node(address: str) -> Iterator[subprocess.Popen[str]]:
    with node("--address", address, "--node-ip-address", "127.0.0.2") as process:
        yield process


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("ray") / "images", 60)


@pytest.fixture(scope="module")
def undisturbed(source: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the local engine, with heatmaps."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    score(source, out, bundle, heatmaps=True)
    return contents(out)


@contextlib.contextmanager
def slow_run(
    source: Path, out: Path, bundle: Path, address: str = "", *, seconds: float = 0.1
) -> Iterator[subprocess.Popen[str]]:
    """Start a run that takes some time to read each image, as a terminal does: in its own process group."""
    command = [sys.executable, "-m", "tests.archive.slow_driver", str(seconds), *score_command(source, out, bundle)[3:]]
    command += ["--heatmaps", "--engine", "ray", *(["--address", address] if address else [])]
    with started(
        command, deadline=200, env=ENVIRONMENT, cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        yield process


@contextlib.contextmanager
def run_with_a_shard(source: Path, out: Path, bundle: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """Start a run that takes three seconds of reading on two nodes, and wait for a shard that it has finished."""
    before = log_size(out)
    with slow_run(source, out, bundle, address) as process:
        deadline = time.monotonic() + 100
        while log_size(out) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None, process.communicate(timeout=60)[0]
        yield process


def log_size(out: Path) -> int:
    """Return the size of the log, which grows with each finished shard."""
    log = out / "archive.log"
    return log.stat().st_size if log.exists() else 0


def tasks() -> list[int]:
    """Return the worker processes of Ray that score a shard."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cmdline").read_bytes().startswith(b"ray::score_in_worker") and (
                ENVIRONMENT["RAY_AUTH_TOKEN"].encode() in (path / "environ").read_bytes()
            ):
                found.append(int(path.name))
    return found


def sessions(processes: list[int]) -> set[int]:
    """Return the sessions of processes, which are named after the first process of each node."""
    found = set()
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getsid(process))
    return found


def assert_complete(out: Path, undisturbed: dict[str, bytes]) -> None:
    assert verify_archive(out).problems == ()
    assert contents(out) == undisturbed


def test_one_command_without_a_cluster_gives_the_files_of_the_local_engine(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes]
) -> None:
    command = [
        sys.executable,
        "-m",
        "pneumoscope",
        *score_command(source, tmp_path / "out", bundle)[3:],
        "--engine",
        "ray",
        "--heatmaps",
    ]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert_complete(tmp_path / "out", undisturbed)


INTRUDER = """
import os, subprocess, sys
from pneumoscope.archive.ray_engine import connected_to_ray
with connected_to_ray(""):
    import ray
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init(address={address!r}, log_to_driver=False); print('connected')"
    for name in ("with", "without"):
        environment = {key: value for key, value in os.environ.items() if name == "with" or not key.startswith("RAY_AUTH")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
        print(name, done.stdout.strip() or "refused", "token" in done.stderr)
"""


def test_an_engine_of_its_own_refuses_who_has_no_token() -> None:
    environment = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", INTRUDER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.splitlines() == ["with connected False", "without refused True"], done.stderr


def test_two_nodes_share_the_shards_and_give_the_files_of_the_local_engine(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes], address: str,
    second_node: subprocess.Popen[str],
) -> None:  # fmt: skip
    nodes = set()
    with run_with_a_shard(source, tmp_path / "out", bundle, address) as process:
        while process.poll() is None:
            for task in tasks():
                with contextlib.suppress(ProcessLookupError):
                    nodes.add(os.getsid(task))
            time.sleep(0.05)
        output, _ = process.communicate(timeout=60)
    assert "Scored 60 of 60 images" in output
    assert_complete(tmp_path / "out", undisturbed)
    assert len(nodes) == 2
    assert second_node.pid in nodes


def test_killed_workers_cost_nothing(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes], address: str
) -> None:
    draw, killed = random.Random(1), 0
    with run_with_a_shard(source, tmp_path / "out", bundle, address) as process:
        while process.poll() is None:
            time.sleep(draw.uniform(0.3, 1.0))
            for task in tasks()[:1]:
                if killed < 4:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(task, signal.SIGKILL)
                        killed += 1
        output, _ = process.communicate(timeout=60)
    assert "Scored 60 of 60 images" in output, output
    assert killed == 4
    assert_complete(tmp_path / "out", undisturbed)


def test_a_killed_node_costs_only_the_shards_in_flight(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes], address: str,
    second_node: subprocess.Popen[str],
) -> None:  # fmt: skip
    with run_with_a_shard(source, tmp_path / "out", bundle, address) as process:
        deadline = time.monotonic() + 100
        while second_node.pid not in sessions(tasks()):  # its worker may start later than that of the first node
            assert process.poll() is None, process.communicate(timeout=60)[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kill_node(second_node)
        output, _ = process.communicate(timeout=150)
    assert "Scored 60 of 60 images" in output, output
    assert_complete(tmp_path / "out", undisturbed)


def test_a_killed_driver_is_continued_by_the_next_one(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes], address: str
) -> None:
    draw, seen = random.Random(2), []
    for _ in range(4):
        with run_with_a_shard(source, tmp_path / "out", bundle, address) as process:
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
            process.communicate(timeout=60)
        (status,) = archive_status(tmp_path / "out").sets
        seen.append(status.shards)
    assert seen == sorted(set(seen))  # each run added shards
    assert seen[0] < 15
    with run_with_a_shard(source, tmp_path / "out", bundle, address) as process:
        output, _ = process.communicate(timeout=100)
    assert "Scored 60 of 60 images" in output, output
    assert_complete(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Initialization failure from server:\nTraceback (most recent call last):\n  ...\nOSError: no port\n",
            "OSError: no port",
        ),
        ("no node\nmore", "no node"),
        ("", "ConnectionAbortedError"),
    ],
)
def test_the_reason_of_a_failed_connection_is_stated(
    monkeypatch: pytest.MonkeyPatch, message: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionAbortedError(message)))
    with (
        pytest.raises(UsageError, match=f"Ray cannot reach an engine on this machine: .*{reason}$"),
        ray_engine.connected_to_ray(""),
    ):
        pass


def test_a_client_of_ray_elsewhere_gives_the_files_of_the_local_engine(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes], running: Cluster
) -> None:
    """The first Ctrl-C finishes the shards in flight on the cluster, and the next run the others."""
    out = tmp_path / "out"
    with run_with_a_shard(source, out, bundle, running.client_address) as process:
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert_interrupted(out, output)
    with slow_run(source, out, bundle, running.client_address, seconds=0) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert_complete(out, undisturbed)


def assert_interrupted(out: Path, output: str) -> None:
    """Shards that were begun are finished, others are not begun."""
    assert "Finishing the shards in flight; press Ctrl-C again to stop at once" in output
    assert "Interrupted. Run the same command again to continue" in output
    (status,) = archive_status(out).sets
    assert 0 < status.shards < 15
    assert {problem.code for problem in verify_archive(out).problems} == {"not_scored"}


def test_ctrl_c_finishes_the_shards_in_flight_on_an_engine_of_its_own(
    tmp_path: Path, source: Path, bundle: Path, undisturbed: dict[str, bytes]
) -> None:
    """As on a terminal, the signal reaches the engine and its workers, too."""
    out = tmp_path / "out"
    with run_with_a_shard(source, out, bundle, "") as process:
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert_interrupted(out, output)
    with slow_run(source, out, bundle, seconds=0) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert_complete(out, undisturbed)


def test_a_second_ctrl_c_stops_ray_at_once(tmp_path: Path, source: Path, bundle: Path) -> None:
    with slow_run(source, tmp_path / "out", bundle, seconds=30) as process:
        deadline = time.monotonic() + 100
        while not tasks():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert time.monotonic() - began < 60  # a shard takes two minutes
    assert tasks() == []
    assert list((tmp_path / "out").glob("predictions/*/shard-*")) == []


def test_an_address_without_a_cluster_is_a_usage_error(tmp_path: Path, source: Path, bundle: Path) -> None:
    arguments = [
        *score_command(source, tmp_path / "out", bundle)[4:],
        "--engine",
        "ray",
        "--address",
        f"127.0.0.1:{free_port()}",
    ]
    done = run_cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster answers at '127.0.0.1:" in done.stderr


def test_a_cluster_without_a_gpu_is_a_usage_error(tmp_path: Path, source: Path, bundle: Path, address: str) -> None:
    """The tasks would wait for a GPU without end."""
    command = [sys.executable, "-m", "pneumoscope", *score_command(source, tmp_path / "out", bundle)[3:]]
    command += ["--engine", "ray", "--address", address, "--provider", "cuda"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    assert "no machine of the Ray cluster has a GPU" in done.stderr


def test_a_model_whose_files_were_replaced_while_the_run_began_scores_nothing(source: Path, bundle: Path) -> None:
    """The driver has loaded one model, and its key; the files that it packs afterwards are of another."""
    from pneumoscope.archive import ray_engine
    from pneumoscope.archive.listing import ListedShard
    from pneumoscope.archive.model_package import pack_model
    from pneumoscope.archive.readers import LocalReader

    package = pack_model({"bundle": bundle})
    job = ray_engine.RayJob(package, LocalReader(str(source)), "another", identifiers=True, heatmaps=False)
    for _ in range(2):  # a worker process that has failed once does not keep the model
        answer = ray_engine.score_in_worker(job, ListedShard(0, 0, ("0000.png",)))
        assert "the files of the model changed while the run began" in str(answer)


def test_an_address_needs_the_engine_ray(tmp_path: Path, source: Path, bundle: Path) -> None:
    done = run_cli(*score_command(source, tmp_path / "out", bundle)[4:], "--address", "127.0.0.1:6379")
    assert (done.returncode, "Add --engine ray" in done.stderr) == (2, True)
