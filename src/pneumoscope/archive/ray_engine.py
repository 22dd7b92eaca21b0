"""Score shards as tasks of Ray, on this machine or on a cluster.

Ray only runs the tasks: the shards are those of the listing, and the driver writes each result and enters it in the journal. A
task whose worker or node is lost runs again elsewhere. If the driver is lost, the next run scores the shards that are not
entered.
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
_TASKS_PER_CORE = 2  # so that no core waits for the driver
_CONNECT_SECONDS = 10.0
_RETRIES = 10  # of a task whose worker or node is lost
_OBJECT_STORE_BYTES = 2**28  # of an embedded engine; Ray writes more to the disk
_model_lock = threading.Lock()
_models: dict[str, Model] = {}  # of a worker process, which keeps its model for the next task


@dataclasses.dataclass(frozen=True, slots=True)
class RayJob:
    """What every task of a run needs.

    Attributes:
        package: The model.
        reader: Reads the images; a folder must be the same on all nodes.
        key: Name of the set of predictions, by which a worker process keeps its model.
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
    """Yield the results of shards as they are finished.

    Args:
        shards: The shards; read as tasks end.
        job: What every task needs.
        address: Address of a cluster, such as "10.0.0.5:6379" or "ray://10.0.0.5:10001"; an engine of this process if empty.
        workers: Tasks that are submitted at the same time; 0 means two per core of the cluster.
        stopping: When it is set, shards that are submitted are finished, and no other is submitted.
        count: Called after each shard with the number of images and of those that could not be read.
    Raises:
        UsageError: The cluster cannot be reached.
        PneumoscopeError: A task failed.
    """
    with connected_to_ray(address):
        import ray

        resource = "GPU" if job.package.uses_gpu else "CPU"
        _require_resource(resource)
        # Each core runs one task: the network and the worker process that decodes take turns. With GPUs, each runs one.
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
    """Return the number of cores or GPUs of the cluster, which may change."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(resource, 0))


def _require_resource(resource: str) -> None:
    """Raise UsageError if no machine has a GPU: the tasks would wait for one without end."""
    if resource == "GPU" and not _count(resource):
        raise UsageError(
            "no machine of the Ray cluster has a GPU",
            hint="Add machines with GPUs, or use --provider cpu",
        )


def score_in_worker(job: RayJob, shard: ListedShard) -> ShardResult | PneumoscopeError:
    """Score one shard in a worker process of Ray. An error is returned, since Ray would change the type of a raised one."""
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
    """Raise if the files of the model were replaced after the driver had loaded it, and before it packed them."""
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
    """Raise UsageError if nothing listens at an address: Ray would try for minutes."""
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
    """Connect to a cluster, or start an engine that ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's usage statistics go to its vendor
    if not address:
        # Ray listens at all addresses of the machine, and without a token runs the code of anyone who reaches it. It reads both
        # variables when it is imported.
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
        if reason.endswith(":") and details:  # a traceback of the server follows
            reason = f"{reason} {details[-1]}"
        raise UsageError(
            f"Ray cannot reach {where}: {reason}",
            hint="Start a cluster with: ray start --head; or leave out --address" if address else "",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
