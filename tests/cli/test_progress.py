"""Progress bars: shown while images are processed, hidden before the bar of training appears."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from pneumoscope.cli.progress import image_progress, staged_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Return a function that makes standard error a terminal; pytest replaces standard error after the fixtures."""

    def use() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        return terminal

    return use


# A visible bar replaces sys.stderr, so that other output is printed above it.


def test_bar_is_hidden_when_complete_and_shown_for_the_next_step(use_terminal: Callable[[], Terminal]) -> None:
    terminal = use_terminal()
    with image_progress("preparing images") as update:
        assert update
        assert sys.stderr is terminal  # nothing to show yet: all images may be in the cache
        visible = []
        for done, total in ((256, 600), (512, 600), (600, 600), (32, 64), (64, 64)):
            update(done, total)
            visible.append(sys.stderr is not terminal)
        assert visible == [True, True, False, True, False]
        text = terminal.getvalue()
        assert text.index("preparing images") < text.index("256/600") < text.index("32/64")
    assert sys.stderr is terminal


def test_bar_is_removed_after_an_exception(use_terminal: Callable[[], Terminal]) -> None:
    terminal = use_terminal()

    def interrupted() -> None:
        with image_progress("preparing images") as update:
            assert update
            update(1, 2)
            assert sys.stderr is not terminal
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert sys.stderr is terminal


def test_stages_are_named(use_terminal: Callable[[], Terminal]) -> None:
    terminal = use_terminal()
    with staged_progress() as update:
        update("listing images", 1, 2)
        update("hashing images", 1, 3)
        assert sys.stderr is not terminal
    assert "hashing images" in terminal.getvalue()
    assert sys.stderr is terminal


def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    with image_progress("preparing images") as update:
        assert update is None
    with staged_progress() as update_stage:
        update_stage("listing images", 1, 2)
    assert stream.getvalue() == ""
