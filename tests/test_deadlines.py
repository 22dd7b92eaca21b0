"""No test may hang: each wait on another process, thread or socket names its deadline."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RUN = {"run", "call", "check_call", "check_output"}
WAITS = {"acquire", "communicate", "get", "join", "result", "wait"}


def endless(source: str) -> list[int]:
    """Return the lines of calls that may wait without end."""
    tree = ast.parse(source)
    # asyncio's own waits are cut by the deadline of the coroutine around them.
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or id(node) in awaited:
            continue
        of_subprocess = isinstance(node.func.value, ast.Name) and node.func.value.id == "subprocess"
        named = {keyword.arg for keyword in node.keywords}
        if (
            (of_subprocess and node.func.attr == "Popen")
            or (of_subprocess and node.func.attr in RUN and "timeout" not in named)
            or (node.func.attr == "create_connection" and "timeout" not in named)
            or (node.func.attr in WAITS and not node.args and "timeout" not in named)
        ):
            found.append(node.lineno)
    return found


# tests/processes.py is the one place that starts a process, and kills it at its deadline.
MODULES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if path.name != "processes.py")


@pytest.mark.parametrize("module", MODULES)
def test_every_wait_has_a_deadline(module: str) -> None:
    assert endless((TESTS / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['true'])",
        "subprocess.Popen(['true'])",
        "socket.create_connection(('127.0.0.1', 1))",
        "process.wait()",
        "thread.join()",
        "future.result()",
        "queue.get()",
        "semaphore.acquire()",
    ],
)
def test_a_wait_without_a_deadline_is_found(source: str) -> None:
    assert endless(source) == [1]


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['true'], timeout=60)",
        "process.wait(60)",
        "thread.join(10)",
        "async def f(): await event.wait()",
    ],
)
def test_a_wait_with_a_deadline_passes(source: str) -> None:
    assert endless(source) == []
