"""Whether images can be judged and kept: tried, but not more than once a second, however many ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pneumoscope.core.errors import PneumoscopeError, StorageError
from pneumoscope.inference.model import Model
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["Readiness"]

_LOG = logging.getLogger("pneumoscope.service")
_SECONDS = 1.0


class Readiness:
    """What is tried, and what came of it last.

    Args:
        model: that judges.
        records: where images are kept.
        now: seconds on a clock that never goes back, for tests.
    """

    def __init__(self, model: Model, records: PredictionRepository, now: Callable[[], float] = time.monotonic) -> None:
        self._model, self._records, self._now = model, records, now
        self._lock = threading.Lock()
        self._until = self._now()
        self._found: PneumoscopeError | None = None

    def check(self) -> None:
        """Score the golden image, and do all that keeping an image takes.

        Raises:
            BundleError: images cannot be judged rightly.
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
            self._model.run_self_test()
            self._records.try_to_keep()
        except StorageError as error:
            _LOG.warning("not ready: %s", error.message)
            return StorageError("images cannot be kept", hint="The log tells why")
        except PneumoscopeError as error:
            return error
        return None
