"""Images that no record tells of: a killed process may leave a few, and many are another database's.

Those whose removal the audit log tells of are removed. The others are left: a few cost little, and many are not to be lost
because a service was started with the wrong database. Retention removes them when they are old.
"""

from __future__ import annotations

import logging
from datetime import datetime
from itertools import islice

from sqlalchemy import Engine, select

from pneumoscope.service.storage.blob_store import BlobStore
from pneumoscope.service.storage.database import reading
from pneumoscope.service.storage.tables import predictions, trail

__all__ = ["clear"]

_LOG = logging.getLogger("pneumoscope.service")
_AT_ONCE = 500  # images that the database is asked about


def clear(engine: Engine, images: BlobStore) -> dict[str, datetime]:
    """Remove what was left half-way, and images whose removal was not done to its end; before any image is kept.

    Args:
        engine: of the database.
        images: where they are kept.
    Returns:
        The images that no record tells of, and whose removal no row of the trail tells of: their hashes, and since when they are
        there.
    Raises:
        StorageError: the database cannot be reached, or an image cannot be removed.
    """
    images.tidy()
    unknown: dict[str, datetime] = {}
    every = images.kept()
    while some := dict(islice(every, _AT_ONCE)):
        held = predictions.c.image_removed.is_(None)
        with reading(engine) as connection:
            asked = select(predictions.c.image_sha256).where(held, predictions.c.image_sha256.in_(some))
            left = some.keys() - set(connection.execute(asked).scalars())
            gone = trail.c.what.in_(("deleted", "image removed"))
            asked = select(trail.c.image_sha256).where(gone, trail.c.image_sha256.in_(left)).distinct()
            told = set(connection.execute(asked).scalars()) if left else set()
        for sha256 in told:
            images.remove(sha256)
        unknown |= {sha256: some[sha256] for sha256 in left - told}
    if unknown:
        _LOG.warning(
            "%d images have no record and are left: if there should be records, this is another database", len(unknown)
        )
    return unknown
