"""Create and send webhook events of finished studies, following Standard Webhooks 1.0.

The document is created when it is sent, so that it reflects corrections and deletions made in the meantime. Only the id
and the revision of an event never change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import requests

from pneumoscope.core.errors import UsageError
from pneumoscope.core.identity import PATIENT_FIELDS, STUDY_FIELDS
from pneumoscope.service.dicom.configuration import Webhook
from pneumoscope.service.dicom.sending import (
    UNCERTAIN_STATUSES,
    DeliveryError,
    UnreachableError,
    connection_error_code,
    may_have_arrived,
)
from pneumoscope.service.signatures import read_secret, webhook_headers
from pneumoscope.service.storage.outbox_records import Delivery
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.studies import latest_images, summarize_study
from pneumoscope.service.storage.study_events import find_event_study, find_superseded_event

__all__ = ["EVENT_TYPE", "WebhookSender", "study_event"]

EVENT_TYPE = "study.finished"
_CONNECT_SECONDS, _READ_SECONDS = 10, 30
_UNREACHABLE_STATUSES = (401, 403, 404, 408, 410, 429)  # statuses that concern the URL, not a single event


def study_event(
    repository: PredictionRepository, delivery: Delivery, notice: Callable[..., str], *, identifiers: bool
) -> bytes:
    """Return the document of an event.

    Args:
        repository: Repository with the study.
        delivery: The event.
        notice: Returns the notice for predictions.
        identifiers: Whether to include the identifiers of patient and study.
    Raises:
        UnknownNameError: The study was deleted.
        StorageError: The database cannot be read.
    """
    stored = find_event_study(repository.engine, delivery)
    document = {
        "type": EVENT_TYPE,
        "timestamp": delivery.created,
        "data": {
            "revision": delivery.revision,
            "supersedes": find_superseded_event(repository.engine, delivery),
            **_study(stored, delivery, identifiers=identifiers),
            "unreadable": dict(delivery.unreadable),
            "operating_point": delivery.subject.operating_point,
            "model_sha256": delivery.subject.model_sha256,
            "notice": notice(*latest_images(stored)),
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _study(stored: list[StoredPrediction], delivery: Delivery, *, identifiers: bool) -> dict[str, Any]:
    if not stored:  # all files are unreadable, or all predictions were deleted
        return {
            "study_key": None,
            "decision": "rejected" if delivery.unreadable else None,
            "probability": None,
            "prediction_id": None,
            "prediction_ids": [],
            "report_id": None,
            "report_ids": [],
            "rejections": {},
            **({"identifiers": {}} if identifiers else {}),
        }
    study = summarize_study(stored)
    report_ids = {each.id: each.report_id for each in latest_images(stored)}
    document: dict[str, Any] = {
        "study_key": study.study_key,
        "decision": study.decision,
        "probability": study.probability,
        "prediction_id": study.prediction_id,
        "report_id": report_ids[study.prediction_id],
        "prediction_ids": list(report_ids),
        "report_ids": list(report_ids.values()),
        "rejections": dict(study.rejections),
    }
    if identifiers:
        document["identifiers"] = {
            name: value for name in (*PATIENT_FIELDS, *STUDY_FIELDS) if (value := getattr(study.identity, name))
        }
    return document


class WebhookSender:
    """A sender of events to a webhook; see `sending.Sender`.

    Args:
        webhook: The webhook.
    Raises:
        UnreachableError: The secret cannot be read.
    """

    def __init__(self, webhook: Webhook) -> None:
        self._webhook = webhook
        try:
            self._secret = read_secret(webhook.secret_file)
        except UsageError as error:
            raise UnreachableError("secret_unreadable") from error
        self._session = requests.Session()
        self._session.trust_env = False  # results must not go to a proxy, nor credentials come from .netrc
        if webhook.ca_file:
            self._session.verify = str(webhook.ca_file)

    def send(self, delivery: Delivery, content: bytes) -> None:
        """Post an event; see `sending.Sender`. Any 2xx status confirms it; the response body is not read."""
        headers = webhook_headers(self._secret, delivery.result_uid, int(time.time()), content)
        try:
            with self._session.post(
                self._webhook.url, content, headers=headers | {"Content-Type": "application/json"},
                allow_redirects=False, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            ) as response:  # fmt: skip
                status = response.status_code
        except (requests.RequestException, OSError) as error:
            code = "timeout" if isinstance(error, requests.Timeout) else connection_error_code(error)
            raise UnreachableError(code, maybe_delivered=may_have_arrived(error)) from error
        if not 200 <= status < 300:
            unreachable = status in _UNREACHABLE_STATUSES or status >= 500 or status < 400
            error_class = UnreachableError if unreachable else DeliveryError
            raise error_class(f"http_{status}", maybe_delivered=status in UNCERTAIN_STATUSES)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
