"""Metrics of the service in Prometheus format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.inbox import InboxStatus
from pneumoscope.service.storage.outbox_status import OutboxStatus

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """Counters and timings. The labels never contain names of images or patients.

    Args:
        waiting: Returns the number of images waiting for a prediction.
        streams: Returns the number of open streams of server-sent events.
        inbox, outbox: Return the numbers of waiting received instances and results.
    """

    def __init__(
        self,
        waiting: Callable[[], float],
        streams: Callable[[], float],
        inbox: Callable[[], InboxStatus],
        outbox: Callable[[], Sequence[OutboxStatus]],
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would add a redundant series to each metric
        self.registry = CollectorRegistry()
        self.images = Counter("pneumoscope_images", "New images by decision", ["decision"], registry=self.registry)
        self.requests = Counter(
            "pneumoscope_requests", "Requests by method, path and status", ["method", "path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram("pneumoscope_request_seconds", "Response time", ["path"], registry=self.registry)
        gauge = Gauge("pneumoscope_images_waiting", "Images that wait for a prediction", registry=self.registry)
        gauge.set_function(waiting)
        gauge = Gauge("pneumoscope_event_streams", "Open streams of server-sent events", registry=self.registry)
        gauge.set_function(streams)
        self.registry.register(_ExchangeCollector(inbox, outbox))

    def render(self) -> bytes:
        """Return all metrics in Prometheus text format, whose media type is `CONTENT_TYPE_LATEST`."""
        return generate_latest(self.registry)


class _ExchangeCollector(Collector):
    """A collector that reads the inbox and outbox status from the database."""

    def __init__(self, inbox: Callable[[], InboxStatus], outbox: Callable[[], Sequence[OutboxStatus]]) -> None:
        self._inbox, self._outbox = inbox, outbox

    def describe(self) -> list[GaugeMetricFamily]:
        """Return an empty list, so that registering the collector does not read the database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics; none if the database cannot be read."""
        try:
            inbox, outbox = self._inbox(), self._outbox()
        except StorageError:
            return
        yield GaugeMetricFamily("pneumoscope_inbox_instances", "Received instances that wait", inbox.instances)
        yield GaugeMetricFamily(
            "pneumoscope_inbox_oldest_seconds",
            "Age of the oldest waiting instance; 0 if none is waiting",
            _age(inbox.oldest),
        )
        names = ["destination"]
        waiting = GaugeMetricFamily("pneumoscope_outbox_results", "Results that wait for a destination", labels=names)
        failing = GaugeMetricFamily(
            "pneumoscope_outbox_failing_results", "Waiting results that failed at least once", labels=names
        )
        oldest = GaugeMetricFamily(
            "pneumoscope_outbox_oldest_seconds", "Age of the oldest waiting result", labels=names
        )
        uncommitted = GaugeMetricFamily(
            "pneumoscope_outbox_uncommitted_results",
            "Delivered results whose storage commitment is requested, but not confirmed",
            labels=names,
        )
        commitment_failing = GaugeMetricFamily(
            "pneumoscope_outbox_commitment_failing_results", "Those whose storage commitment failed", labels=names
        )
        for each in outbox:
            for family, value in (
                (waiting, each.waiting),
                (failing, each.failing),
                (oldest, _age(each.oldest)),
                (uncommitted, each.uncommitted),
                (commitment_failing, each.commitment_failing),
            ):
                family.add_metric([each.destination], value)
        yield from (waiting, failing, oldest, uncommitted, commitment_failing)


def _age(time: str | None) -> float:
    return 0.0 if time is None else max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
