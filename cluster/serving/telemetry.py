"""What the endpoint counts, as Prometheus reads it.

Always true here: a metric's labels come from a fixed set, never from what a client sent.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cluster.serving.events import Refused

PREFIX = "addiffusion_serving"
NOT_READY = "not_ready"
OUTCOMES = ("ok", "invalid", "unauthorized", "busy", "not_ready", "draining", "timeout", "error", "left")
"""left: the client closed the connection before its answer was there."""
_OUTCOME_OF_STATUS = {401: "unauthorized", 429: "busy", 503: "draining", 504: "timeout", 500: "error"}
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
NFE = (2, 4, 6, 8, 10, 15, 20, 30, 50, 100)


class Telemetry:
    """Counters of one ingress."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(f"{PREFIX}_requests", "Requests for images", ["outcome"], registry=registry)
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds", "Of a request for images", registry=registry, buckets=SECONDS
        )
        self.nfe = Histogram(
            f"{PREFIX}_image_nfe", "Denoiser calls of an image", registry=registry, buckets=NFE
        )
        self.retries = Counter(f"{PREFIX}_image_retries", "Images begun again elsewhere", registry=registry)
        self.slots = Gauge(f"{PREFIX}_slots_in_use", "Images that are being painted", registry=registry)
        self.queued = Gauge(f"{PREFIX}_images_queued", "Images that wait for a slot", registry=registry)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)

    def count(self, outcome: str) -> None:
        """One request has ended so."""
        assert outcome in OUTCOMES, outcome
        self._requests.labels(outcome).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)


def outcome_of(refused: Refused) -> str:
    """What a refusal counts as."""
    if refused.code == NOT_READY:
        return NOT_READY
    return _OUTCOME_OF_STATUS.get(refused.status, "invalid")
