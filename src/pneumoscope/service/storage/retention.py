"""Retention: remove images that are too old, and retry removals that failed."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from pneumoscope.core.errors import PneumoscopeError
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["Retention"]

_LOG = logging.getLogger("pneumoscope.service")
_EVERY = 600  # seconds between runs


class Retention:
    """A thread that runs at the start and every few minutes.

    Args:
        records: Where the images are stored.
        keep: Age at which images are removed; None keeps them.
    """

    def __init__(self, records: PredictionRepository, keep: timedelta | None) -> None:
        self._records, self._keep = records, keep
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="retention", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for a removal that has begun."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                self._records.tidy()
                if self._keep is not None:
                    self._records.expire(self._keep, stopped=self._stopped.is_set)
            except Exception as error:  # noqa: BLE001  the next run tries again; an unexpected message may contain anything
                why = error.message if isinstance(error, PneumoscopeError) else type(error).__name__
                _LOG.error("old images could not be removed, which is tried again: %s", why)
            if self._stopped.wait(_EVERY):
                return
