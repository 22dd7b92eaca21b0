"""Score an archive in a child process that kills itself with SIGKILL before a chosen step.

A step is whatever changes a file: opening it for writing, half of its content, synchronizing, renaming, and half of a line of the
journal. Child processes import this module and nothing else of the tests.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pathlib
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pneumoscope.archive import score as score_module
from pneumoscope.archive.score import score_archive
from pneumoscope.archive.sources import open_source
from pneumoscope.inference.model import load_model

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "pyarrow.parquet", "onnxruntime", __name__])


class Steps:
    """Report each step to the parent process, and kill this process before the step of a number."""

    def __init__(self, report: Connection, last: int) -> None:
        self.report, self.last, self.count = report, last, 0
        self.lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self.lock:
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            self.report.send(name)

    def watch(self) -> None:
        """Count changes of files."""
        fsync, write, open_path, replace = os.fsync, os.write, pathlib.Path.open, pathlib.Path.replace

        def synchronized(handle: int) -> None:
            self("fsync")
            fsync(handle)

        def written(handle: int, data: bytes) -> int:
            half = len(data) // 2
            write(handle, data[:half])
            self("half of a line")
            return half + write(handle, data[half:])

        def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode != "xb":
                return open_path(path, mode, *arguments, **options)
            self("open for writing")
            return HalfwayWriter(io.FileIO(path, "x"), self)

        def replaced(path: Path, target: Path) -> Path:
            self(f"rename {target.name}")
            return replace(path, target)

        os.fsync, os.write = synchronized, written
        pathlib.Path.open, pathlib.Path.replace = opened, replaced  # type: ignore[method-assign]


class HalfwayWriter(io.BufferedWriter):
    """A file of whose first content one half reaches the disk before the other, with a step between them."""

    def __init__(self, raw: Any, step: Steps) -> None:
        super().__init__(raw)
        self.step, self.begun = step, False

    def write(self, content: Any) -> int:
        if self.begun:
            return super().write(content)
        self.begun = True
        data = bytes(content)
        half = len(data) // 2
        super().write(data[:half])
        self.flush()
        self.step("half of the content")
        return half + super().write(data[half:])


def run(source: Path, out: Path, bundle: Path, number: int, report: Connection) -> None:
    """Score an archive with heatmaps until the step of a number."""
    # No step is in a decode worker, whose start takes ten times as long as the rest.
    score_module.load_model = lambda **options: load_model(**options | {"isolated": False})  # type: ignore[attr-defined]
    Steps(report, number).watch()
    score_archive(open_source(str(source)), out, model={"bundle": bundle}, shard_size=4, workers=1, heatmaps=True)
    os._exit(0)


def steps_until_killed(source: Path, out: Path, bundle: Path, number: int) -> tuple[list[str], bool]:
    """Score an archive in a child process, and return its steps and whether it was killed."""
    reader, writer = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run, args=(source, out, bundle, number, writer))
    process.start()
    writer.close()
    steps: list[str] = []
    try:
        while True:
            assert reader.poll(60), f"no step after {steps}"
            steps.append(reader.recv())
    except EOFError:
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode in (0, -signal.SIGKILL), (steps, process.exitcode)
    return steps, process.exitcode != 0
