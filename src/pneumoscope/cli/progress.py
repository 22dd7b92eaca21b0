"""One progress bar for every verb that goes through many images: on standard error, and only on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["image_progress"]


@contextlib.contextmanager
def image_progress(words: str) -> Iterator[Callable[[int, int], None] | None]:
    """A callback taking (images done, images in all), or None where nobody watches.

    Args:
        words: what is going on: "preparing images".
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(words, total=None)

    def move(done: int, total: int) -> None:
        # There only while images are being gone through: training shows a bar of its own, and two at once spoil each other.
        # One step can follow another (decoding, then features), so that it may come back.
        bar.update(task, completed=done, total=total)
        if done < total:
            bar.start()
        else:
            bar.stop()
            bar.reset(task)

    try:
        yield move
    finally:
        bar.stop()
