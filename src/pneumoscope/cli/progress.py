"""One progress bar for every verb that goes through many films: on standard error, and only on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["film_progress"]


@contextlib.contextmanager
def film_progress(words: str) -> Iterator[Callable[[int, int], None] | None]:
    """A callback taking (films done, films in all), or None where nobody watches.

    Args:
        words: what is going on: "preparing films".
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None, visible=False)

        def move(done: int, total: int) -> None:
            # The bar goes when the films are done: training shows its own.
            bar.update(task, completed=done, total=total, visible=done < total)

        yield move
