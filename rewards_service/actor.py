"""A replica of the rewards service: one Ray actor that hosts scorers behind a micro-batcher.

Always true: a replica that dies is started again by Ray, with its scorers loaded anew and nothing
remembered; the calls it held fail, and their clients send them again. Replicas share nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import ray

from rewards_service.batcher import MicroBatcher
from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.scoring import output_sources, score_batch

BuildScorers = Callable[[], Sequence[Scorer]]


class RewardActor:
    """The actor's class; `start` makes replicas of it."""

    def __init__(self, build: BuildScorers, max_images: int, max_waiting: int, torch_threads: int) -> None:
        scorers = tuple(build())
        if torch := sys.modules.get("torch"):  # Scorers without torch do not wait for its import.
            torch.set_num_threads(torch_threads)
        self._sources = output_sources(scorers)
        self._batcher = MicroBatcher(
            partial(score_batch, scorers), max_images=max_images, max_waiting=max_waiting
        )

    async def score(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> Scores:
        """Scores one call, together with whatever else is queued."""
        return await self._batcher.score(images, prompts, outputs)

    async def sources(self) -> dict[str, str]:
        """Which scorer gives which output; answering also says that this replica is up."""
        return self._sources

    async def stats(self) -> dict[str, int]:
        """`BatcherStats` since this replica was last started, and the images that wait now."""
        return {**asdict(self._batcher.stats), "waiting": self._batcher.waiting}


def start(
    build: BuildScorers,
    *,
    name: str | None = None,
    replicas: int = 1,
    detached: bool = False,
    namespace: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_images: int = 64,
    max_waiting: int = 1024,
    torch_threads: int = 1,
) -> list[Any]:
    """Starts replicas that load their scorers with `build`, and returns their handles once all are up.

    With a name they are called `replica_names(name, replicas)` and any process of the namespace can find
    them. Detached ones outlive the program that started them; if they exist already, those are used.
    """
    if replicas < 1:
        raise ValueError(f"replicas: {replicas}; accepted: 1 or more")
    if detached and name is None:
        raise ValueError("detached: True without a name; accepted: a name, so that others can find it")
    options: dict[str, Any] = {"max_restarts": -1, "num_cpus": num_cpus, "num_gpus": num_gpus}
    if namespace is not None:
        options["namespace"] = namespace
    if detached:
        options |= {"lifetime": "detached", "get_if_exists": True}
    names = [None] * replicas if name is None else replica_names(name, replicas)
    actor_class = ray.remote(RewardActor)
    handles = [
        actor_class.options(name=each, **options).remote(build, max_images, max_waiting, torch_threads)
        for each in names
    ]
    ray.get([handle.sources.remote() for handle in handles])
    return handles


def replica_names(name: str, replicas: int) -> list[str]:
    """The actor names of a pool, for clients in other processes."""
    return [f"{name}-{index}" for index in range(replicas)]
