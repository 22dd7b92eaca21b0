"""Settings of a service: limits, addresses and the retention period."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from zoneinfo import ZoneInfo

from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.storage.pseudonyms import Pseudonymizer

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a service.

    Attributes:
        max_body_bytes: Size of a body with images.
        max_total_bytes: Size of all bodies with images in progress together.
        max_images: Images in one request.
        max_waiting: Images that are accepted and not answered.
        loopback: Whether only this machine can reach the service. Requests for other host names are then rejected.
        public_name: Host name under which a reverse proxy on this machine publishes the service; may be empty.
        keep: Age at which images are removed; None keeps them.
        keep_identities: Age at which identities of patients are removed; None keeps them.
        blind_first: Whether the web UI shows a prediction only after the reader has labeled the image.
        time_zone: Time zone of the web UI.
        pseudonymizer: Replaces identities of patients by pseudonyms; None stores them.
        dicom: How the service exchanges images and results with other nodes.
    """

    max_body_bytes: int = 256 * 2**20
    max_total_bytes: int = 2**30
    max_images: int = 64
    max_waiting: int = 256
    loopback: bool = True
    public_name: str = ""
    keep: timedelta | None = None
    keep_identities: timedelta | None = None
    blind_first: bool = False
    time_zone: ZoneInfo = dataclasses.field(default_factory=lambda: ZoneInfo("UTC"))
    pseudonymizer: Pseudonymizer | None = None
    dicom: DicomConfiguration = dataclasses.field(default_factory=DicomConfiguration)
