"""The studies to pull from another node, and the outcome of a pull."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date

from pydicom import Dataset

from pneumoscope.core.errors import PullError, UsageError
from pneumoscope.service.dicom.node_settings import image_name

__all__ = ["Progress", "PullReport", "StudySelection"]

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class StudySelection:
    """The studies to pull; exactly one attribute is set.

    Attributes:
        study_uid: Study Instance UID.
        accession_number: Accession number.
        since: Earliest study date.
    Raises:
        UsageError: No attribute or more than one is set, or one is invalid.
    """

    study_uid: str = ""
    accession_number: str = ""
    since: date | None = None

    def __post_init__(self) -> None:
        """Validate the attributes."""
        if sum(map(bool, dataclasses.astuple(self))) != 1:
            raise UsageError("choose the studies by one of --study, --accession and --since")
        if self.study_uid and image_name(self.study_uid) != self.study_uid:
            raise UsageError("--study is not a UID", hint="Pass the Study Instance UID: digits and periods, up to 64")
        if not self.accession_number.isascii() or set(self.accession_number) & set("*?\\"):
            raise UsageError("--accession is not one accession number", hint="Pass it without wildcards")

    @property
    def keys(self) -> dict[str, str]:
        """The matching keys of a study search (PS3.4 C.6.2.1.2)."""
        if self.since:
            return {"StudyDate": f"{self.since:%Y%m%d}-"}
        if self.accession_number:
            return {"AccessionNumber": self.accession_number}
        return {"StudyInstanceUID": self.study_uid}

    def contains(self, study: Dataset) -> bool:
        """Return whether a study found by a node really matches; a node may ignore keys that it does not support."""
        ((keyword, value),) = self.keys.items()
        found = str(study.get(keyword) or "").strip()
        return found >= value.rstrip("-") if self.since else found == value


@dataclasses.dataclass(slots=True)
class PullReport:
    """The outcome of a pull.

    Attributes:
        source: Name of the node.
        studies: Number of studies found.
        series: Number of their series with a modality in `dicomweb.client.MODALITIES`.
        instances: Number of instances that the service stored or already had.
        failed_instances: Number of instances that could not be sent or stored.
        failed_series: Number of series with an unknown number of missing instances.
        incomplete_searches: Number of searches that may have returned only part of the results; see
            `dicomweb.client.WebArchive`.
        error: Error that ended the pull before the last series; empty if there was none.
    """

    source: str
    studies: int = 0
    series: int = 0
    instances: int = 0
    failed_instances: int = 0
    failed_series: int = 0
    incomplete_searches: int = 0
    error: str = ""

    def end_early(self, error: PullError, remaining: int) -> None:
        """Record an error that ends the pull and the number of remaining series; raise it if nothing was pulled."""
        if not self.instances:
            raise error
        self.failed_series += remaining
        self.error = error.message
