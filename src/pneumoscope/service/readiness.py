"""Whether films can be judged and kept: tried, but not more than once a second, however many ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pneumoscope.errors import PneumoscopeError, StorageError
from pneumoscope.predictor.model import Model
from pneumoscope.service.records import Records

__all__ = ["Readiness"]

_LOG = logging.getLogger("pneumoscope.service")
_SECONDS = 1.0


class Readiness:
    """What is tried, and what came of it last.

    Args:
        model: that judges.
        records: where films are kept.
        now: seconds on a clock that never goes back, for tests.
    """

    def __init__(self, model: Model, records: Records, now: Callable[[], float] = time.monotonic) -> None:
        self._model, self._records, self._now = model, records, now
        self._lock = threading.Lock()
        self._until = self._now()
        self._found: PneumoscopeError | None = None

    def check(self) -> None:
        """Score the golden film, and do all that keeping a film takes.

        Raises:
            BundleError: films cannot be judged rightly.
            StorageError: they cannot be kept. Whoever asks has no token, and is not told where: the log tells.
        """
        with self._lock:
            if self._now() >= self._until:
                self._found = self._try()
                self._until = self._now() + _SECONDS
            found = self._found
        if found is not None:
            raise found

    def _try(self) -> PneumoscopeError | None:
        try:
            self._model.try_golden_film()
            self._records.try_to_keep()
        except StorageError as error:
            _LOG.warning("not ready: %s", error.message)
            return StorageError("films cannot be kept", advice="The log tells why")
        except PneumoscopeError as error:
            return error
        return None
