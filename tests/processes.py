"""Start other processes in tests, with a deadline for each."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

DEADLINE = 60.0
_PORTS = range(10_000, 32_000)  # below those from which systems choose for outgoing connections


@contextmanager
def started(command: Sequence[Any], *, deadline: float = DEADLINE, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process, and wait for its end when the block is done.

    The process is killed at the deadline, in seconds from its start, and when the block raises. A read from its pipes
    or a wait for its end therefore ends, too.
    """
    with subprocess.Popen(command, **options) as process:
        killer = threading.Timer(deadline, process.kill)
        killer.daemon = True
        killer.start()
        try:
            yield process
            process.wait(deadline + 1)
        except BaseException:
            process.kill()
            raise
        finally:
            killer.cancel()


def free_port() -> int:
    """Return a port that nothing uses, for a program that cannot choose one by itself."""
    for _ in range(100):
        port = random.choice(_PORTS)
        with socket.socket() as probe:  # without SO_REUSEADDR: a port of a connection that has just ended is not free
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")
