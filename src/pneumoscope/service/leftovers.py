"""Films that no record tells of: a killed process may leave a few, and many are another database's.

Those whose removal the audit trail tells of are removed. The others are left: a few cost little, and many are not to be lost
because a service was started with the wrong database. Retention removes them when they are old.
"""

from __future__ import annotations

import logging
from datetime import datetime
from itertools import islice

from sqlalchemy import Engine, select

from pneumoscope.service.database import reading
from pneumoscope.service.film_store import FilmStore
from pneumoscope.service.tables import predictions, trail

__all__ = ["clear"]

_LOG = logging.getLogger("pneumoscope.service")
_AT_ONCE = 500  # films that the database is asked about


def clear(engine: Engine, films: FilmStore) -> dict[str, datetime]:
    """Remove what was left half-way, and films whose removal was not done to its end; before any film is kept.

    Args:
        engine: of the database.
        films: where they are kept.
    Returns:
        The films that no record tells of, and whose removal no row of the trail tells of: their hashes, and since when they are
        there.
    Raises:
        StorageError: the database cannot be reached, or a film cannot be removed.
    """
    films.tidy()
    unknown: dict[str, datetime] = {}
    every = films.kept()
    while some := dict(islice(every, _AT_ONCE)):
        held = predictions.c.film_removed.is_(None)
        with reading(engine) as connection:
            asked = select(predictions.c.film_sha256).where(held, predictions.c.film_sha256.in_(some))
            left = some.keys() - set(connection.execute(asked).scalars())
            gone = trail.c.what.in_(("deleted", "film removed"))
            asked = select(trail.c.film_sha256).where(gone, trail.c.film_sha256.in_(left)).distinct()
            told = set(connection.execute(asked).scalars()) if left else set()
        for sha256 in told:
            films.remove(sha256)
        unknown |= {sha256: some[sha256] for sha256 in left - told}
    if unknown:
        _LOG.warning(
            "%d films have no record and are left: if there should be records, this is another database", len(unknown)
        )
    return unknown
