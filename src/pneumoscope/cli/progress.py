"""Progress bars on standard error, shown only on a terminal, and escaping of text for terminals."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pneumoscope.archive.progress import Progress

__all__ = ["archive_progress", "image_progress", "printable", "staged_progress"]


@contextlib.contextmanager
def image_progress(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a callback that takes (images done, total), or None if standard error is not a terminal.

    Args:
        description: Text beside the bar, such as "scoring images".
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=None)

    def update(done: int, total: int) -> None:
        # Hide when complete, because training shows its own bar; show again if another step follows.
        bar.update(task, completed=done, total=total)
        if done < total:
            bar.start()
        else:
            bar.stop()
            bar.reset(task)

    try:
        yield update
    finally:
        bar.stop()


@contextlib.contextmanager
def archive_progress() -> Iterator[Callable[[Progress], None] | None]:
    """Yield a callback that shows counts, rate and remaining time, or None if standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.fields[rate]:.1f} images/s, {task.fields[left]} left, {task.fields[failed]} failed")
    with Bar(BarColumn(), MofNCompleteColumn(), text, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate=0.0, left="?", failed=0)

        def update(progress: Progress) -> None:
            left = "?" if progress.seconds_left is None else str(timedelta(seconds=round(progress.seconds_left)))
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                rate=progress.rate,
                left=left,
                failed=progress.failed,
            )

        yield update


@contextlib.contextmanager
def staged_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that takes (stage name, steps done, total) and shows a bar if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


def printable(text: str) -> str:
    """Return the text with unprintable characters escaped, because file names are untrusted."""
    encoding = sys.stdout.encoding or "ascii"
    text = "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode() for mark in text
    )
    return text.encode(encoding, "backslashreplace").decode(encoding)
