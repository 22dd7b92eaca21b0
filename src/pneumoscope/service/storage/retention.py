"""Retention: remove images and identities that are too old, and retry removals that failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from pneumoscope.core.errors import PneumoscopeError
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["Retention"]

_LOG = logging.getLogger("pneumoscope.service")
_INTERVAL_SECONDS = 600


class Retention:
    """A thread that removes expired images at the start and every few minutes.

    Args:
        repository: Where the images are stored.
        keep: Age at which images are removed; None keeps them.
        keep_identities: Age at which identities of patients are removed; None keeps them.
    """

    def __init__(
        self, repository: PredictionRepository, keep: timedelta | None, keep_identities: timedelta | None = None
    ) -> None:
        self._repository, self._keep, self._keep_identities = repository, keep, keep_identities
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the thread, and wait for a removal in progress, but not longer than a number of seconds."""
        self._stopped.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._attempt(self._repository.retry_failed)
            if self._keep is not None:
                self._attempt(partial(self._repository.expire, self._keep, stopped=self._stopped.is_set))
            if self._keep_identities is not None:
                expire = partial(self._repository.expire_identities, self._keep_identities)
                self._attempt(partial(expire, stopped=self._stopped.is_set))
            if self._stopped.wait(_INTERVAL_SECONDS):
                return

    def _attempt(self, step: Callable[[], object]) -> None:
        """Run a step, and log its failure: the other steps still run, and the next run tries again."""
        try:
            step()
        except Exception as error:  # noqa: BLE001  the next run tries again
            # The message of an unexpected error may contain names of patients.
            reason = error.message if isinstance(error, PneumoscopeError) else type(error).__name__
            _LOG.error("Images or identities could not be removed; the next run tries again: %s", reason)
