"""What a replica reports to Prometheus through Ray, and the names under which it is found there.

Always true: every metric has the tags `service`, `scorer` (the pool) and `replica`; Ray exports each name
with "ray_" before it.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

TAGS = ("service", "scorer", "replica")
QUEUE = "addiffusion_rewards_queue_images"
BATCH = "addiffusion_rewards_batch_images"
LATENCY = "addiffusion_rewards_latency_seconds"
IMAGES = "addiffusion_rewards_images_total"
RETRIES = "addiffusion_rewards_retries_total"
RESTARTS = "addiffusion_rewards_restarts_total"
BATCH_BOUNDS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
LATENCY_BOUNDS = [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]


class ReplicaMetrics:
    """The metrics of one replica."""

    def __init__(self, service: str, scorer: str, replica: int) -> None:
        self._queue = Gauge(QUEUE, "Images that are scored or wait in the replica.", TAGS)
        self._batch = Histogram(BATCH, "Images of a batch.", BATCH_BOUNDS, TAGS)
        self._latency = Histogram(
            LATENCY, "Seconds from a call's arrival at the replica to its answer.", LATENCY_BOUNDS, TAGS
        )
        self._images = Counter(IMAGES, "Images that were scored.", TAGS)
        self._retries = Counter(RETRIES, "Calls that had been sent before and were lost.", TAGS)
        self._restarts = Counter(
            RESTARTS, "Times that the replica was started again; a new process begins there.", TAGS
        )
        self._all: tuple[Any, ...] = (
            self._queue,
            self._batch,
            self._latency,
            self._images,
            self._retries,
            self._restarts,
        )
        for metric in self._all:
            metric.set_default_tags({"service": service, "scorer": scorer, "replica": str(replica)})

    def queued(self, images: int) -> None:
        """So many images are held now."""
        self._queue.set(images)

    def batch(self, images: int) -> None:
        """A batch was scored."""
        self._batch.observe(images)
        self._images.inc(images)

    def answered(self, seconds: float) -> None:
        """A call was answered, so long after it came."""
        self._latency.observe(seconds)

    def retried(self) -> None:
        """A call came that had been sent before."""
        self._retries.inc()

    def restarted(self, times: int) -> None:
        """This process is the replica's (times + 1)-th."""
        self._restarts.inc(times)

    def exported_names(self) -> set[str]:
        """The names in Prometheus. Ray guesses a histogram's `_sum` from its buckets, so none is listed."""
        names = set()
        for metric in self._all:
            endings = ("_bucket", "_count") if isinstance(metric, Histogram) else ("",)
            names |= {f"ray_{metric.info['name']}{ending}" for ending in endings}
        return names
