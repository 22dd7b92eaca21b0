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
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    limited = {owner(call) for call in calls if call.func.attr in {"settimeout", "poll"} and call.args}
    found = []
    for call in calls:
        if id(call) in awaited:
            continue
        name = call.func.attr
        named = {keyword.arg for keyword in call.keywords}
        if (
            (owner(call) == "subprocess" and name == "Popen")
            or (owner(call) == "subprocess" and name in RUN and "timeout" not in named)
            or (owner(call) == "os" and name in {"wait", "waitpid"} and "os.WNOHANG" not in ast.unparse(call))
            or (owner(call) == "asyncio" and name == "run" and "asyncio.wait_for(" not in ast.unparse(call))
            or (name == "create_connection" and "timeout" not in named)
            or (name == "recv" and owner(call) not in limited)
            or (name in WAITS and not call.args and "timeout" not in named)
        ):
            found.append(call.lineno)
    return found


def owner(call: ast.Call) -> str:
    """Return the object or module whose method or function is called."""
    assert isinstance(call.func, ast.Attribute)
    return ast.unparse(call.func.value)


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
        "os.waitpid(child, 0)",
        "asyncio.run(answered())",
        "connection.recv(1000)",
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
        "os.waitpid(child, os.WNOHANG)",
        "asyncio.run(asyncio.wait_for(answered(), 10))",
        "connection.settimeout(5); connection.recv(1000)",
        "while reader.poll(60): reader.recv()",
    ],
)
def test_a_wait_with_a_deadline_passes(source: str) -> None:
    assert endless(source) == []
