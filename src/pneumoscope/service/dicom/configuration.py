"""Configuration of the exchange with other nodes: the DICOM node, its peers, site rules and destinations of results."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pneumoscope.core.addresses import require_base_url, require_https
from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_codes import AgeRequirement
from pneumoscope.service.auth.users import validate_name
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.signatures import read_secret
from pneumoscope.service.storage.outbox_records import ObjectKind

__all__ = [
    "ConfigurationTable",
    "Destination",
    "DicomConfiguration",
    "Name",
    "ResultSettings",
    "SiteRule",
    "Source",
    "WebServer",
    "Webhook",
]


def _require_name(name: str) -> str:
    try:
        validate_name(name)
    except UsageError as error:
        raise ValueError(f"{name[:80]!r} cannot be used as a name. {error.hint}") from error
    return name


Name = Annotated[str, AfterValidator(_require_name)]
Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class ConfigurationTable(BaseModel):
    """A table of the configuration file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SiteRule(ConfigurationTable):
    """A rule for received images. The first rule whose conditions all hold applies; if there is none, the image is predicted.

    Attributes:
        name: Name that appears in rejections.
        action: "exclude" rejects the image, "predict" predicts it.
        result: Whether the destinations receive the result.
        modalities, views, stations, senders: Accepted values of Modality, ViewPosition and StationName, and names of
        peers or users. Case is ignored; "" matches a missing value.
        min_age, max_age: Ages in years, inclusive; images without an age do not match.
        since, until: Study dates, inclusive; images without a valid date do not match.
    """

    name: Name
    action: Literal["predict", "exclude"]
    result: bool = True
    modalities: Texts | None = None
    views: Texts | None = None
    stations: Texts | None = None
    senders: Texts | None = None
    min_age: float | None = Field(default=None, ge=0)
    max_age: float | None = Field(default=None, ge=0)
    since: date | None = None
    until: date | None = None

    def matches(self, prediction: Prediction, *, modality: str, view: str, sender: str) -> bool:
        """Return whether all conditions hold for an image.

        Args:
            prediction: Prediction of the image.
            modality, view: Values in the header; empty if missing.
            sender: Name of the peer or user.
        """
        station = prediction.identity.station_name if prediction.identity else ""
        stated = (
            (self.modalities, modality), (self.views, view), (self.stations, station), (self.senders, sender),
        )  # fmt: skip
        if any(values is not None and text.casefold() not in map(str.casefold, values) for values, text in stated):
            return False
        age = prediction.age.years if prediction.age else None
        if (self.min_age, self.max_age) != (None, None) and (
            age is None or age < (self.min_age or 0) or (self.max_age is not None and age > self.max_age)
        ):
            return False
        if (self.since, self.until) == (None, None):
            return True
        try:
            studied = date.fromisoformat(prediction.identity.study_date if prediction.identity else "")
        except ValueError:
            return False
        return (self.since or date.min) <= studied <= (self.until or date.max)


class ResultSettings(ConfigurationTable):
    """The objects to deliver, and the description of their series.

    Attributes:
        objects: Kinds of objects. A Parametric Map contains the heatmap; a presentation state contains the heatmap's
            contour and the result for display over the image. A rejected image has no Parametric Map.
        series_number: Series number of the Secondary Capture. The Structured Report, rejection notes, Parametric Maps
            and presentation states use the following numbers in this order.
        series_description: Beginning of the series description; the decision follows.
        languages: Languages of the text in a Secondary Capture, from top to bottom.
        font: Font of that text, TrueType or OpenType; None for a font with Latin letters only.
    """

    objects: tuple[Literal["secondary_capture", "structured_report", "parametric_map", "presentation_state"], ...] = (
        Field(default=("secondary_capture", "structured_report"), min_length=1)
    )
    series_number: int = Field(default=9101, ge=1, le=2**31 - 5)
    series_description: str = Field(default="pneumoscope", min_length=1, max_length=32)
    languages: tuple[Literal["en", "zh-Hant"], ...] = Field(default=("en",), min_length=1)
    font: Path | None = None

    def kinds(self, *, has_heatmap: bool, is_readable: bool = True) -> tuple[ObjectKind, ...]:
        """Return the kinds of objects for an image: at least one, since no result would look like a normal image."""
        without = {"parametric_map"} if not has_heatmap else set()
        if not is_readable:
            without |= {"presentation_state"}  # it would display nothing
        return tuple(kind for kind in self.objects if kind not in without) or ("structured_report",)


class WebServer(ConfigurationTable):
    """A DICOMweb server.

    Attributes:
        name: Name of the server.
        url: Base URL of the DICOMweb service, such as "https://pacs.example/dicom-web".
        user, password_file: Credentials for basic authentication.
        token_file: File with a bearer token.
        ca_file: CA certificates for verifying the server (PEM); those of the system if None.
    """

    name: Name | None = None
    url: Annotated[str, AfterValidator(require_base_url)] | None = None
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _require_credentials(self) -> Self:
        if bool(self.user) != bool(self.password_file) or (self.user and self.token_file):
            raise ValueError("needs user and password_file, or token_file, or neither")
        return self


class Destination(WebServer):
    """A node that receives results: a peer, by C-STORE, or a DICOMweb server, by STOW-RS.

    Attributes:
        peer: Name of the peer; "sender" is the peer that sent the image. The inherited attributes apply only to a
            DICOMweb server.
        storage_commitment: Whether to request storage commitment from the peer.
        commitment_seconds: Seconds without a report until the request is repeated.
    """

    peer: str = ""
    storage_commitment: bool = False
    commitment_seconds: float = Field(default=3600, ge=60, le=86400)

    @model_validator(mode="after")
    def _require_one_kind(self) -> Self:
        if bool(self.peer) == bool(self.url):
            raise ValueError("needs either a peer, or a name and a url")
        if self.url and not self.name:
            raise ValueError("a destination with a url needs a name")
        if not self.url and any((self.name, self.user, self.password_file, self.token_file, self.ca_file)):
            raise ValueError("only peer, storage_commitment and commitment_seconds can be set for a peer")
        has_seconds = "commitment_seconds" in self.model_fields_set
        if self.url and (self.storage_commitment or has_seconds):
            name = "storage_commitment" if self.storage_commitment else "commitment_seconds"
            raise ValueError(f"{name} needs a peer: DICOMweb destinations are not asked")
        if has_seconds and not self.storage_commitment:
            raise ValueError("commitment_seconds needs storage_commitment = true")
        return self


class Source(WebServer):
    """A DICOMweb server from which images can be pulled, but which receives no results; see `WebServer`."""

    @model_validator(mode="after")
    def _require_address(self) -> Self:
        if not self.name or not self.url:
            raise ValueError("a source needs a name and a url")
        return self


class Webhook(ConfigurationTable):
    """An HTTP server that receives an event for each finished study.

    Attributes:
        name: Name in the outbox.
        url: URL to which events are posted.
        secret_file: File with the secret for signatures; see `signatures.read_secret`.
        ca_file: CA certificates for verifying the server (PEM); those of the system if None.
        identifiers: Whether events contain the identifiers of patient and study.
    """

    name: Name
    url: Annotated[str, AfterValidator(require_https)]
    secret_file: Path
    ca_file: Path | None = None
    identifiers: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class DicomConfiguration:
    """Settings for the exchange of images and results with other nodes.

    Attributes:
        node: The DICOM node; None without one.
        quiet_seconds: Seconds without a new instance after which a study is predicted.
        rules: Site rules, in order.
        destinations: Nodes that receive results.
        results: The objects to deliver.
        sources: DICOMweb servers from which images can be pulled, in addition to peers and destinations.
        webhooks: Servers that receive events of finished studies.
        fhir_secret_file: Secret that signs FHIR resources; None without signatures.
        require_age: Images to reject if the patient's age is unknown; None if not configured.
    """

    node: DicomSettings | None = None
    quiet_seconds: float = 60
    rules: tuple[SiteRule, ...] = ()
    destinations: tuple[Destination, ...] = (Destination(peer="sender"),)
    results: ResultSettings = dataclasses.field(default_factory=ResultSettings)
    sources: tuple[Source, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    fhir_secret_file: Path | None = None
    require_age: AgeRequirement | None = None

    def __post_init__(self) -> None:
        """Raise UsageError if a destination is not a peer, a name is used twice, or a secret cannot be read."""
        peers = [peer.name for peer in self.peers]
        for destination in self.destinations:
            if destination.peer and destination.peer not in ("sender", *peers):
                raise UsageError(
                    f"the destination {destination.peer!r} is not a peer", hint=f"Peers: {', '.join(peers) or 'none'}"
                )
        servers = [each.name for each in (*self.destinations, *self.sources) if each.name]
        names = [*peers, *servers, *(rule.name for rule in self.rules), *(webhook.name for webhook in self.webhooks)]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"two peers, destinations, sources, rules or webhooks have the name {name!r}",
                    hint="Choose another name",
                )
        for file in (*(webhook.secret_file for webhook in self.webhooks), self.fhir_secret_file):
            if file:
                read_secret(file)

    @property
    def peers(self) -> tuple[DicomPeer, ...]:
        """The DICOM nodes that may connect."""
        return self.node.peers if self.node else ()

    @property
    def receivers(self) -> dict[str, DicomPeer | Destination]:
        """The nodes that may receive results, by destination name."""
        web = {each.name: each for each in self.destinations if each.name}
        if any(each.peer == "sender" for each in self.destinations):
            return {peer.name: peer for peer in self.peers} | web
        named = {each.peer for each in self.destinations}
        return {peer.name: peer for peer in self.peers if peer.name in named} | web

    @property
    def commitments(self) -> dict[str, timedelta]:
        """The peers with storage commitment, and the time to wait for a report."""
        found: dict[str, timedelta] = {}
        # Settings for a named peer take precedence over those of "sender".
        for each in sorted(self.destinations, key=lambda each: each.peer != "sender"):
            names = [peer.name for peer in self.peers] if each.peer == "sender" else [each.peer]
            if each.storage_commitment:
                found |= dict.fromkeys(names, timedelta(seconds=each.commitment_seconds))
            else:
                found = {name: wait for name, wait in found.items() if name not in names}
        return found

    @property
    def pull_sources(self) -> dict[str, DicomPeer | WebServer]:
        """The nodes from which images can be pulled, by name."""
        servers: list[WebServer] = [*self.destinations, *self.sources]
        return {peer.name: peer for peer in self.peers} | {each.name: each for each in servers if each.name}

    def destinations_of(self, reply_to: str) -> list[str]:
        """Return the names of the destinations for an image's results.

        Args:
            reply_to: Name of the peer that sent the image; empty if it did not come from a peer.
        """
        names = [each.name or (reply_to if each.peer == "sender" else each.peer) for each in self.destinations]
        return list(dict.fromkeys(name for name in names if name))

    def rule_of(self, prediction: Prediction, *, modality: str, view: str, sender: str) -> SiteRule | None:
        """Return the first rule that matches an image; see `SiteRule.matches`."""
        found = (rule for rule in self.rules if rule.matches(prediction, modality=modality, view=view, sender=sender))
        return next(found, None)
