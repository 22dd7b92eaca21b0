"""Settings of a service: limits, addresses and the retention period."""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta
from zoneinfo import ZoneInfo

from pneumoscope.core.errors import UsageError
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.storage.pseudonyms import Pseudonymizer

__all__ = ["Settings"]

_HOST_NAME = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a service.

    Attributes:
        max_body_bytes: Maximum size of a body with images.
        max_total_bytes: Maximum total size of all bodies with images in progress.
        max_images: Maximum number of images per request.
        max_waiting: Maximum number of accepted images without a response.
        loopback: Whether only this machine can reach the service. Requests for other host names are then rejected.
        public_name: Host name under which a reverse proxy on this machine publishes the service; may be empty.
        keep: Age at which images are removed; None keeps them.
        keep_identities: Age at which patient identities are removed; None keeps them.
        blind_first: Whether the web interface hides a prediction until the reader has labeled the image.
        time_zone: Time zone of the web interface.
        pseudonymizer: Replaces patient identities by pseudonyms; None stores the identities.
        dicom: Exchange of images and results with other nodes.
    Raises:
        UsageError: Two settings contradict each other, or the public name is not a host name.
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

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.keep_identities and not self.pseudonymizer and (self.keep is None or self.keep > self.keep_identities):
            raise UsageError(
                "--keep-identities needs --keep of at most the same age: stored DICOM files contain identities",
                hint="Pass a shorter --keep, or --pseudonymize, which stores images without their headers",
            )
        if self.public_name and not re.fullmatch(_HOST_NAME, self.public_name):
            raise UsageError(
                f"--public-name {self.public_name!r} is not a host name",
                hint="Pass only the name, without a scheme, a port or a path, such as images.clinic.example",
            )
        if self.pseudonymizer and self.dicom.receivers:
            raise UsageError(
                "--pseudonymize stores no identity, and results cannot be sent without one",
                hint="Set `destinations = []` in the DICOM configuration, or omit --pseudonymize",
            )
        if self.pseudonymizer and any(webhook.identifiers for webhook in self.dicom.webhooks):
            raise UsageError(
                "--pseudonymize stores no identifiers, and a webhook asks for them",
                hint="Remove `identifiers = true` from the DICOM configuration, or omit --pseudonymize",
            )
