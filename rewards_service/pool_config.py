"""Options of the rewards service: which pools there are, and how far a caller waits for them.

Nothing here reads a file. An impossible value is a ValueError of one line that begins with its option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

NAMESPACE = "addiffusion"
"""Ray's namespace of all services, so that every job and trial finds them."""
LABEL_SHARE = 0.001


@dataclass(frozen=True)
class PoolConfig:
    """Replicas of one set of scorers.

    scorers: names of the scorers it hosts, empty: all that no other pool names; replicas, cpus, gpus: how
    many there are and what Ray reserves for each (None: as `resources` says); resource: the custom resource
    that a node has to offer to get one (likewise); batch_size: images a scorer sees at a time; max_queued:
    images a replica holds, scored or waiting, and images one caller has under way to it (a single larger
    call passes alone); batch_timeout_s: a replica that works longer than this on one batch hangs, and is
    replaced.
    """

    scorers: tuple[str, ...] = ()
    replicas: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    resource: str | None = None
    batch_size: int = 64
    max_queued: int = 512
    batch_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for option in ("replicas", "batch_size", "max_queued"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option}={value}: give an integer >= 1")
        for option in ("cpus", "gpus"):
            value = getattr(self, option)
            if value is not None and value < 0:
                raise ValueError(f"{option}={value}: give a number >= 0")
        _positive("batch_timeout_s", self.batch_timeout_s)


@dataclass(frozen=True)
class ServiceConfig:
    """Where scores come from.

    service: a service that runs already (`addiffusion rewards start`); None starts pools for the run and
    ends them with it; deadline_s: seconds that a caller waits for one answer, lost replicas and retries
    included, before it fails; pools: by name. A run that uses a service takes its pools as they are.
    """

    service: str | None = None
    deadline_s: float = 180.0
    pools: Mapping[str, PoolConfig] = field(default_factory=lambda: {"all": PoolConfig()})

    def __post_init__(self) -> None:
        _positive("deadline_s", self.deadline_s)
        if self.service is not None:
            check_name("service", self.service)
        if not self.pools:
            raise ValueError("pools={}: give at least one pool")
        named = [name for pool in self.pools.values() for name in pool.scorers]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"pools: {twice!r} is in two of them; give each scorer one pool")
        if sum(not pool.scorers for pool in self.pools.values()) > 1:
            raise ValueError("pools: two of them take all other scorers; give `scorers` to all but one")
        for name in self.pools:
            check_name("pools", name)

    def filled(self, replicas: int, cpus: float, gpus: float, resource: str | None) -> dict[str, PoolConfig]:
        """The pools by name, with these numbers where they give none of their own."""
        return {
            name: replace(
                pool,
                replicas=replicas if pool.replicas is None else pool.replicas,
                cpus=cpus if pool.cpus is None else pool.cpus,
                gpus=gpus if pool.gpus is None else pool.gpus,
                resource=resource if pool.resource is None else pool.resource,
            )
            for name, pool in self.pools.items()
        }


def node_label(resource: str | None) -> dict[str, float]:
    """What Ray is asked for so that a process runs only on nodes that offer `resource`.

    So little of it that a node's quantity does not matter: CPUs and GPUs say how many processes fit.
    """
    return {} if resource is None else {resource: LABEL_SHARE}


def check_name(option: str, name: str) -> None:
    """Raise ValueError for a name that cannot be part of an actor's."""
    if not name or "/" in name or "=" in name:
        raise ValueError(f"{option}={name!r}: give a name without '/' and '='")


def _positive(option: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{option}={value}: give a number of seconds above 0")
