"""The populations of all models that the service has used, so that results of earlier models can show theirs."""

from __future__ import annotations

import contextlib

import msgspec
from sqlalchemy import delete, insert, select

from pneumoscope.core.population import Population
from pneumoscope.service.storage.image_storage import ImageStorage
from pneumoscope.service.storage.tables import model_populations

__all__ = ["PopulationRepository"]


class PopulationRepository:
    """The population of each model, by model hash.

    Args:
        storage: Storage of the service.
    """

    def __init__(self, storage: ImageStorage) -> None:
        self._storage = storage
        self._known: dict[str, Population] = {}

    def record(self, model_sha256: str, population: Population) -> None:
        """Store the population of the current model, and load those of earlier models.

        A population with unknown fields, written by a later version, is treated as unknown.

        Raises:
            StorageError: The populations cannot be stored or read.
        """
        stated = msgspec.json.encode(population).decode()
        with self._storage.read_transaction() as connection:
            stored = {row.model_sha256: row.population for row in connection.execute(select(model_populations))}
        if stored.get(model_sha256) != stated:
            columns = model_populations.c
            with self._storage.write_transaction() as connection:
                connection.execute(delete(model_populations).where(columns.model_sha256 == model_sha256))
                connection.execute(insert(model_populations), [{"model_sha256": model_sha256, "population": stated}])
        texts = stored | {model_sha256: stated}
        for sha256, text in texts.items():
            with contextlib.suppress(msgspec.DecodeError):
                self._known[sha256] = msgspec.json.decode(text, type=Population)

    def find(self, model_sha256: str) -> Population | None:
        """Return the population of a model; None if it is unknown."""
        return self._known.get(model_sha256)
