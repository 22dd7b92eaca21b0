"""The figures of each epoch for TensorBoard, in its own file format.

Lightning's logger writes through a thread that dies of a full disk with a traceback, and then calls the figures unsupported. A
picture of the run is not worth the run: this one says that it ends, and training goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

__all__ = ["EventLog"]


class EventLog(Logger):
    """A file of events; one more each time that a run is begun or resumed.

    Args:
        folder: of the files; made at the first figures.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._file: Path | None = None
        self._ended = False

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not here: they are in `recipe.toml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one epoch's figures; after a failure nothing is added any more, since half a record may stand at the end."""
        if self._ended:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        try:
            if self._file is None:
                # TensorBoard knows its files by the middle of their name, and reads them in its order.
                self._file = self.folder / f"events.out.tfevents.{time.time_ns()}"
                self.folder.mkdir(parents=True, exist_ok=True)
                self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
            self._add(Event(wall_time=time.time(), step=step or 0, summary=Summary(value=values)))
        except OSError as error:
            self._ended = True
            print(
                f"note: nothing more is written for TensorBoard in {str(self.folder)!r}: {error.strerror or error};"
                " training goes on",
                file=sys.stderr,
                flush=True,
            )

    def _add(self, event: Event) -> None:
        assert self._file is not None
        with self._file.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
