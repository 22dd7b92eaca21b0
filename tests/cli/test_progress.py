"""The bar for images: there while images are gone through, and gone before training shows its own."""

import io
import sys

import pytest

from pneumoscope.cli.progress import image_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watched(monkeypatch):
    """Makes standard error a terminal; called in the test, since pytest sets standard error anew before it."""

    def watch():
        found = Terminal()
        monkeypatch.setattr(sys, "stderr", found)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        return found

    return watch


# A bar that is alive takes standard error for itself: what others print then goes above it.


def test_the_bar_is_gone_when_the_images_are_done_and_comes_back_for_the_next_step(watched):
    terminal = watched()
    with image_progress("preparing images") as move:
        assert sys.stderr is terminal  # nothing to show yet: all images may be in the cache
        alive = []
        for done, total in ((256, 600), (512, 600), (600, 600), (32, 64), (64, 64)):
            move(done, total)
            alive.append(sys.stderr is not terminal)
        assert alive == [True, True, False, True, False]
        shown = terminal.getvalue()
        assert shown.index("preparing images") < shown.index("256/600") < shown.index("32/64")
    assert sys.stderr is terminal


def test_the_bar_is_gone_after_an_error(watched):
    terminal = watched()

    def spoiled():
        with image_progress("preparing images") as move:
            move(1, 2)
            assert sys.stderr is not terminal
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoiled()

    assert sys.stderr is terminal


def test_there_is_no_bar_where_nobody_watches(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    with image_progress("preparing images") as move:
        assert move is None
