"""Archives of small images, and what a run leaves on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.images import dicom, png

from pneumoscope.archive.score import Scored, score_archive
from pneumoscope.archive.sources import open_source

__all__ = ["contents", "draw_images", "query", "run_cli", "score", "score_command", "table"]

DEADLINE = 120.0


def draw_images(folder: Path, count: int, *, first: int = 0) -> Path:
    """Write PNG files of different gray levels, and a DICOM file for every fifth image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        level = 60 + 11 * number % 140
        if number % 5 == 4:
            content = dicom(level, StudyInstanceUID=f"1.2.{number}", StudyDate="20190503", Manufacturer="Acme")
            (folder / f"{number:04d}.dcm").write_bytes(content)
        else:
            (folder / f"{number:04d}.png").write_bytes(png(level, height=16 + number % 7))
    return folder


def score(source: Path, out: Path, bundle: Path, *, shard_size: int = 4, **options: Any) -> Scored:
    """Score an archive in this process."""
    options.setdefault("stopping", threading.Event())
    model = {"bundle": bundle, **options.pop("model", {})}
    return score_archive(open_source(str(source)), out, model=model, shard_size=shard_size, **options)


def score_command(source: Path, out: Path, bundle: Path, *options: str) -> list[str]:
    """Return the command that scores an archive in shards of four."""
    command = [sys.executable, "-m", "pneumoscope", "archive", "score", str(source), "--out", str(out)]
    return [*command, "--model", str(bundle), "--shard-size", "4", *options]


def run_cli(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `pneumoscope archive` as a process."""
    command = [sys.executable, "-m", "pneumoscope", "archive", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE, check=False, env=environment, **options
    )


def contents(out: Path) -> dict[str, bytes]:
    """Return the Parquet files of an archive, and its heatmaps, by their path."""
    files = sorted([*out.rglob("*.parquet"), *out.rglob("*.zip")])
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def table(out: Path) -> list[dict[str, Any]]:
    """Return all rows of the only set of predictions."""
    files = sorted(out.glob("predictions/*/shard-*.parquet"))
    rows: list[dict[str, Any]] = pa.concat_tables(pq.ParquetFile(path).read() for path in files).to_pylist()
    return rows


def query(out: Path, sql: str) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Return the columns and all rows of a query."""
    from pneumoscope.archive.query import query_archive  # DuckDB is an extra

    with query_archive(out, sql) as result:
        return result.columns, tuple(result.rows)
