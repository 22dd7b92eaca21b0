"""Score shards as Ray tasks, on this machine or on a cluster.

Ray only runs the tasks: shards come from the listing, and the driver writes each result and enters it in the journal. A task
whose worker or node is lost is rerun elsewhere. If the driver is lost, the next run scores the shards missing from the journal.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pneumoscope.archive.archive_folder import SetSettings
from pneumoscope.archive.listing import ListedShard
from pneumoscope.archive.model_package import ModelPackage
from pneumoscope.archive.readers import Reader
from pneumoscope.archive.scoring import ShardResult, score_shard
from pneumoscope.core.errors import ArchiveError, PneumoscopeError, UsageError
from pneumoscope.inference.model import Model

__all__ = ["RayJob", "connected_to_ray", "run_on_ray", "score_in_worker"]

_POLL_SECONDS = 0.5
_TASKS_PER_CORE = 2  # keeps all cores busy while the driver writes results
_CONNECT_SECONDS = 10.0
_RETRIES = 10  # retries of a task whose worker or node is lost
_OBJECT_STORE_BYTES = 2**28  # for Ray on this machine; Ray spills more to disk
_model_lock = threading.Lock()
_models: dict[str, Model] = {}  # models loaded in a worker process, kept for its next task


@dataclasses.dataclass(frozen=True, slots=True)
class RayJob:
    """Data needed by all tasks of a run.

    Attributes:
        package: Model to load.
        reader: Reader of the images; a folder must be available under the same path on all nodes.
        key: Name of the prediction set, under which a worker process keeps its model.
        identifiers, heatmaps: See `scoring.score_shard`.
    """

    package: ModelPackage
    reader: Reader
    key: str
    identifiers: bool
    heatmaps: bool


def run_on_ray(
    shards: Iterable[ListedShard],
    job: RayJob,
    *,
    address: str = "",
    workers: int = 0,
    stopping: threading.Event,
    count: Callable[[int, int], None] | None = None,
) -> Generator[ShardResult]:
    """Yield the results of shards as they finish.

    Args:
        shards: Shards to score; read as tasks finish.
        job: Data needed by all tasks.
        address: Address of a cluster, such as "10.0.0.5:6379" or "ray://10.0.0.5:10001"; empty to start Ray on this machine.
        workers: Maximum number of submitted tasks; 0 for two per core of the cluster, or per GPU if the network runs on GPUs.
        stopping: Event after which submitted shards are finished but no new ones are submitted.
        count: Called after each shard with the number of images and how many of them could not be read.

    Raises:
        UsageError: The cluster cannot be reached, or has no GPU although one is needed.
        PneumoscopeError: A task failed.
    """
    with connected_to_ray(address):
        import ray

        resource = "GPU" if job.package.uses_gpu else "CPU"
        _require_resource(resource)
        # One task per core, because the network and the decoding worker process take turns; with GPUs, one task per
        # GPU.
        task = ray.remote(num_cpus=1, num_gpus=int(job.package.uses_gpu), max_retries=_RETRIES)(score_in_worker)
        reference = ray.put(job)
        pending: dict[Any, int] = {}
        waiting = iter(shards)
        try:
            while True:
                limit = workers or _TASKS_PER_CORE * max(1, _count(resource))
                while len(pending) < limit and not stopping.is_set():
                    shard = next(waiting, None)
                    if shard is None:
                        break
                    pending[task.remote(reference, shard)] = shard.number
                if not pending:
                    return
                done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
                for each in done:
                    result = _result(each, pending.pop(each))
                    if count:
                        count(result.rows, result.failed)
                    yield result
        finally:
            for each in pending:
                ray.cancel(each, force=True)


def _count(resource: str) -> int:
    """Return the current number of cores or GPUs in the cluster."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(resource, 0))


def _require_resource(resource: str) -> None:
    """Raise UsageError if no machine has a GPU, because tasks would wait for one forever."""
    if resource == "GPU" and not _count(resource):
        raise UsageError(
            "no machine of the Ray cluster has a GPU",
            hint="Add machines with GPUs, or use --provider cpu",
        )


def score_in_worker(job: RayJob, shard: ListedShard) -> ShardResult | PneumoscopeError:
    """Score one shard in a Ray worker process; errors are returned because Ray would change the type of a raised one."""
    try:
        with _model_lock:
            if job.key not in _models:
                model = job.package.load()
                _require_same_model(model, job)
                _models[job.key] = model
        return score_shard(_models[job.key], job.reader, shard, identifiers=job.identifiers, heatmaps=job.heatmaps)
    except PneumoscopeError as error:
        return error


def _require_same_model(model: Model, job: RayJob) -> None:
    """Raise if the model's files were replaced between loading and packing them in the driver."""
    if SetSettings.of_model(model, identifiers=job.identifiers).key != job.key:
        raise ArchiveError(
            "the files of the model changed while the run began", hint="Run the same `pneumoscope archive score` again"
        )


def _result(reference: Any, number: int) -> ShardResult:
    import ray

    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise ArchiveError(
            f"shard {number} could not be scored on Ray: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="Run the same `pneumoscope archive score` again. Finished shards are kept",
        ) from error
    if isinstance(result, PneumoscopeError):
        raise result
    assert isinstance(result, ShardResult)
    return result


def _require_listener(address: str) -> None:
    """Raise UsageError if an address does not accept connections, because Ray would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {error}",
            hint="Start a cluster with: ray start --head; or leave out --address",
        ) from error


@contextmanager
def connected_to_ray(address: str) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine for the duration of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # do not send usage statistics to the vendor
    if not address:
        # Ray listens on all interfaces and, without a token, runs code from anyone who can connect. It reads both
        # variables on import.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    options: dict[str, Any] = {"address": address}
    if address:
        _require_listener(address)
    else:
        options = {
            "address": "local",
            "num_cpus": os.cpu_count() or 1,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the cluster at {address!r}" if address else "an engine on this machine"
        reason, *details = list(filter(None, str(error).splitlines())) or [type(error).__name__]
        if reason.endswith(":") and details:  # followed by a traceback of the server
            reason = f"{reason} {details[-1]}"
        raise UsageError(
            f"Ray cannot reach {where}: {reason}",
            hint="Start a cluster with: ray start --head; or leave out --address" if address else "",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
