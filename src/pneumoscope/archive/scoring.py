"""Score one shard, for all engines: read, decode in worker processes, predict, and return the result files."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pneumoscope import __version__
from pneumoscope.archive.heatmaps import write_heatmaps
from pneumoscope.archive.journal import Runtime
from pneumoscope.archive.listing import ListedShard
from pneumoscope.archive.table import build_row, write_table
from pneumoscope.core.errors import (
    DecodeCrashedError,
    DecodeTimeoutError,
    PneumoscopeError,
    StorageError,
    UnreadableImageError,
)
from pneumoscope.inference.batches import batched
from pneumoscope.inference.model import BATCH_SIZE, ScoredImage
from pneumoscope.inference.providers import Provider, runtime_version

if TYPE_CHECKING:
    from pneumoscope.archive.readers import Reader
    from pneumoscope.inference.model import Model
    from pneumoscope.inference.saliency import Layer

__all__ = ["CancelledError", "ShardResult", "current_runtime", "score_shard"]

# For these reasons, check whether the whole source has become unavailable.
_ACCESS_REASONS = frozenset({"file_not_found", "permission_denied", "is_a_directory", "file_not_accessible"})
# Failures that may not recur: a killed worker, or a machine under load.
_TRANSIENT_ERRORS = frozenset({DecodeCrashedError.code, DecodeTimeoutError.code})
_MAX_STARTS = 5  # attempts to start a decode worker
_READ_DELAYS = (0.2, 1.0, 5.0)  # seconds between attempts to read a file


class CancelledError(Exception):
    """Raised when the run was stopped before the shard was finished."""


class ShardResult(NamedTuple):
    """Result of a scored shard.

    Attributes:
        shard: Number of the shard.
        rows: Number of rows.
        failed: Number of unreadable images.
        decisions: Number of images by decision.
        table: Content of the Parquet file.
        heatmaps: Content of the heatmap file; None if not requested.
        seconds: Duration of scoring.
        runtime: Software that scored the shard.
    """

    shard: int
    rows: int
    failed: int
    decisions: dict[str, int]
    table: bytes
    heatmaps: bytes | None
    seconds: float
    runtime: Runtime


def score_shard(
    model: Model,
    reader: Reader,
    shard: ListedShard,
    *,
    identifiers: bool = True,
    heatmaps: bool = False,
    count: Callable[[int, int], None] | None = None,
    cancelled: threading.Event | None = None,
) -> ShardResult:
    """Return the results of one shard; an unreadable image becomes a row with the reason.

    The network always runs on the same batches, which makes the results reproducible to the bit.

    Args:
        model: Loaded model.
        reader: Reader of the images.
        shard: Shard to score.
        identifiers: See `table.build_row`.
        heatmaps: Whether to return heatmaps.
        count: Called after each batch with the number of images and how many of them could not be read.
        cancelled: Event that stops scoring after the current batch.

    Raises:
        CancelledError: `cancelled` is set.
        StorageError: The source has become unavailable.
    """
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    layers: list[tuple[int, Layer]] = []
    decisions: Counter[str] = Counter()
    failed = 0
    for batch in batched(enumerate(shard.names, start=shard.first_row), BATCH_SIZE):
        if cancelled and cancelled.is_set():
            raise CancelledError
        contents = [_read(reader, name) for _, name in batch]
        scored = _score(model, contents, heatmaps=heatmaps)
        for (row, name), content, each in zip(batch, contents, scored, strict=True):
            data = content if isinstance(content, bytes) else None
            rows.append(build_row(row, name, data, each, identifiers=identifiers))
            if each.prediction.decision:
                decisions[each.prediction.decision] += 1
            if each.heatmap:
                layers.append((row, each.heatmap))
        n_failed = sum(each.prediction.decision is None for each in scored)
        failed += n_failed
        if count:
            count(len(batch), n_failed)
    seconds = time.monotonic() - started
    return ShardResult(
        shard=shard.number,
        rows=len(rows),
        failed=failed,
        decisions=dict(sorted(decisions.items())),
        table=write_table(rows, model.notice),
        heatmaps=write_heatmaps(layers, model.notice) if heatmaps else None,
        seconds=seconds,
        runtime=current_runtime(model.provider),
    )


def current_runtime(provider: Provider) -> Runtime:
    """Return the software of this process and the processor that runs the network."""
    return Runtime(pneumoscope=__version__, onnxruntime=runtime_version(), provider=provider)


def _read(reader: Reader, name: str) -> bytes | UnreadableImageError:
    """Return the content of an image, or the error if it cannot be read.

    Raises:
        StorageError: The source has become unavailable, in which case the file may exist.
    """
    for delay in (*_READ_DELAYS, None):
        try:
            return reader.read(name)
        except UnreadableImageError as error:
            code = error.reason.code if error.reason else ""
            if code not in _ACCESS_REASONS:
                return error
            if not reader.is_available():
                raise StorageError(
                    f"the source {reader.root!r} is missing or empty, so that its images cannot be read",
                    hint="Make it available, and run the same `pneumoscope archive score` again. Finished shards are kept",
                ) from error
            if code != "file_not_accessible" or delay is None:
                return error
        time.sleep(delay)
    raise AssertionError("unreachable")


def _score(model: Model, contents: Sequence[bytes | UnreadableImageError], *, heatmaps: bool) -> list[ScoredImage]:
    """Return the results of a batch, repeating it once if a decoder crashed or timed out."""
    readable = [content for content in contents if isinstance(content, bytes)]
    scored = _score_readable(model, readable, heatmaps=heatmaps)
    if any(each.prediction.failure and each.prediction.failure.code in _TRANSIENT_ERRORS for each in scored):
        scored = _score_readable(model, readable, heatmaps=heatmaps)
    results = iter(scored)
    return [
        next(results) if isinstance(content, bytes) else ScoredImage(model.failed(content), None, None)
        for content in contents
    ]


def _score_readable(model: Model, contents: Sequence[bytes], *, heatmaps: bool) -> list[ScoredImage]:
    """Return the results of a batch, repeating it if a decode worker does not start, for example because it was killed."""
    for _ in range(_MAX_STARTS - 1):
        try:
            return model.score_batch(contents, heatmaps=heatmaps)
        except PneumoscopeError as error:
            if error.code != PneumoscopeError.code:
                raise
    return model.score_batch(contents, heatmaps=heatmaps)
