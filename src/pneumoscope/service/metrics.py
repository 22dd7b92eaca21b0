"""Metrics of the service in Prometheus format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """Counters and timings. Their labels never contain the name of an image or a patient.

    Args:
        waiting: Returns the number of images that wait for a prediction.
        streams: Returns the number of open streams of server-sent events.
    """

    def __init__(self, waiting: Callable[[], float], streams: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a redundant series beside each metric
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

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, whose media type is `CONTENT_TYPE_LATEST`."""
        return generate_latest(self.registry)
