"""Prometheus metrics of the engine and of HTTP; docs/service.md lists them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from store.memory import resident_bytes

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32)
_DISTANCES = (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10)
_RESIDUALS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1)


class Metrics:
    """Metrics of an engine, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self._stages = Histogram(
            "diffdgss_stage_seconds", "Time spent in each stage", ["stage"], buckets=_SECONDS, registry=r
        )
        self.batch_size = Histogram("diffdgss_batch_size", "Images inverted together", buckets=_SIZES, registry=r)
        self.answers = Counter("diffdgss_answers", "Answers by where they came from", ["model", "source"], registry=r)
        self.joined = Counter("diffdgss_joined", "Requests that shared the work of another one", registry=r)
        self.abstentions = Counter("diffdgss_abstentions", "Answers that advise to abstain", ["model"], registry=r)
        self.distance = Histogram(
            "diffdgss_domain_distance", "Distance from training images", ["model"], buckets=_DISTANCES, registry=r
        )
        self.residual = Histogram(
            "diffdgss_inversion_residual", "Residual of the inversion", ["model"], buckets=_RESIDUALS, registry=r
        )
        self.store_failures = Counter("diffdgss_store_failures", "Failed store operations", ["doing"], registry=r)
        self.job_images = Counter("diffdgss_job_images", "Images of jobs", ["result"], registry=r)
        self.reloads = Counter("diffdgss_reloads", "Reloads of the models", registry=r)
        self.gauge("diffdgss_resident_bytes", "Memory of this process", resident_bytes)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge whose value is computed when the metrics are read."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def observe(self, stage: str, seconds: float) -> None:
        """Record the seconds that one run of a stage took."""
        self._stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class HttpMetrics:
    """Metrics of the HTTP application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("diffdgss_requests", "Requests", ["route", "method", "status"], registry=r)
        self.seconds = Histogram(
            "diffdgss_request_seconds", "Time of requests", ["route"], buckets=_SECONDS, registry=r
        )
        self.refused = Counter("diffdgss_refused", "Requests without an answer, by error", ["reason"], registry=r)
        self.in_flight = Gauge("diffdgss_requests_in_flight", "Requests being answered", registry=r)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
