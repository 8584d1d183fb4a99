"""Starts, finds, scales and stops rewards services on a Ray cluster.

A service is a name; its replicas are the actors called NAME/POOL/INDEX in the namespace of all services.
Nothing else knows about a service: what its replicas are called says which there are, and each of them
can say what it is made of.

Always true here: a service either starts whole or leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util import list_named_actors

from rewards_service.actor import PoolSpec, ReplicaStats, RewardActor, restarts_of
from rewards_service.client import ActorClient
from rewards_service.pool_config import NAMESPACE, check_name, node_label
from rewards_service.routing import ReplicaPool

START_TIMEOUT_S = 600.0
STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class PoolStatus:
    """One pool as `status` finds it; `stats` has the replicas that answered."""

    name: str
    replicas: int
    restarts: int
    stats: tuple[ReplicaStats, ...]


def start(service: str, specs: Sequence[PoolSpec], *, detached: bool = False) -> list[Any]:
    """Starts the replicas of all pools and returns their handles once they are up.

    Detached ones outlive this program; others end with their last handle. Raises ValueError if the service
    runs already, for what a pool's configuration has wrong, and if the cluster has no room for it.
    """
    check_name("service", service)
    if replicas_of(service):
        raise ValueError(f"rewards.service={service!r} runs already: scale it, or stop it first")
    handles: list[Any] = []
    try:
        for spec in specs:
            for index in range(spec.config.replicas or 1):
                handles.append(_start_replica(service, spec, index, detached))
        _await_start(handles)
    except BaseException:
        for handle in handles:
            ray.kill(handle)
        raise
    return handles


def connect(service: str, *, deadline_s: float = 180.0) -> ActorClient:
    """A client of a running service. Raises ValueError if there is none by that name."""
    pools = [ReplicaPool(pool, partial(_pool_names, service, pool), _look_up) for pool in _running(service)]
    return ActorClient(pools, deadline_s=deadline_s)


def scale(service: str, pool: str, replicas: int) -> None:
    """Starts or ends replicas of one pool until there are so many. Calls of those ended are sent elsewhere.

    Raises ValueError for an unknown service or pool.
    """
    if replicas < 1:
        raise ValueError(f"{pool}={replicas}: give an integer >= 1; to end all: addiffusion rewards stop")
    pools = _running(service)
    if pool not in pools:
        raise ValueError(f"{pool}={replicas}: no such pool in {service!r}; give one of {', '.join(pools)}")
    running = pools[pool]
    for index in sorted(running)[replicas:]:
        ray.kill(_look_up(running[index]))
    free = (index for index in range(replicas) if index not in running)
    missing = replicas - len(running)
    if missing <= 0:
        return
    spec: PoolSpec = ray.get(_look_up(next(iter(running.values()))).spec.remote(), timeout=START_TIMEOUT_S)
    handles = [_start_replica(service, spec, next(free), detached=True) for _ in range(missing)]
    try:
        _await_start(handles)
    except BaseException:
        for handle in handles:
            ray.kill(handle)
        raise


def status(service: str) -> list[PoolStatus]:
    """Every pool of a service, with the replicas that answer in time. Raises ValueError if there is none."""
    handles = {pool: [_look_up(name) for name in names.values()] for pool, names in _running(service).items()}
    asked = {pool: [handle.stats.remote() for handle in of_pool] for pool, of_pool in handles.items()}
    everything = [answer for of_pool in asked.values() for answer in of_pool]
    ready, _ = ray.wait(everything, num_returns=len(everything), timeout=STATUS_TIMEOUT_S)
    return [
        PoolStatus(
            name=pool,
            replicas=len(of_pool),
            restarts=sum(restarts_of(handle._actor_id.hex()) for handle in handles[pool]),
            stats=tuple(stats for answer in of_pool if answer in ready for stats in _answered(answer)),
        )
        for pool, of_pool in asked.items()
    ]


def stop(service: str) -> int:
    """Ends every replica of a service, so that its name is free; says how many there were."""
    names = [name for pool in replicas_of(service).values() for name in pool.values()]
    for name in names:
        with suppress(ValueError):  # ended by itself meanwhile
            ray.kill(_look_up(name))
    while replicas_of(service):  # Ray ends them in the background
        time.sleep(0.05)
    return len(names)


def services() -> list[str]:
    """The names of all services that run."""
    return sorted({service for service, _, _ in _actors()})


def replicas_of(service: str) -> dict[str, dict[int, str]]:
    """Pool to index to actor's name, of every replica that is there, being started again included."""
    pools: dict[str, dict[int, str]] = {}
    for name, pool, index in sorted(_actors()):
        if name == service:
            pools.setdefault(pool, {})[index] = replica_name(service, pool, index)
    return pools


def replica_name(service: str, pool: str, index: int) -> str:
    """What a replica's actor is called."""
    return f"{service}/{pool}/{index}"


def _actors() -> list[tuple[str, str, int]]:
    everywhere = list_named_actors(all_namespaces=True)
    named = [actor["name"] for actor in everywhere if actor["namespace"] == NAMESPACE]
    parts = [name.split("/") for name in named]
    return [(part[0], part[1], int(part[2])) for part in parts if len(part) == 3 and part[2].isdigit()]


def _pool_names(service: str, pool: str) -> list[str]:
    return list(replicas_of(service).get(pool, {}).values())


def _running(service: str) -> dict[str, dict[int, str]]:
    pools = replicas_of(service)
    if not pools:
        known = services()
        listed = f"there runs {', '.join(known)}" if known else "none runs"
        raise ValueError(
            f"rewards.service={service!r} does not run ({listed}); start it: addiffusion rewards start"
        )
    return pools


def _look_up(name: str) -> Any:
    return ray.get_actor(name, namespace=NAMESPACE)


def _start_replica(service: str, spec: PoolSpec, index: int, detached: bool) -> Any:
    options: dict[str, Any] = {
        "name": replica_name(service, spec.name, index),
        "namespace": NAMESPACE,
        "max_restarts": -1,
        "num_cpus": spec.config.cpus or 0,
        "num_gpus": spec.config.gpus or 0,
        "resources": node_label(spec.config.resource),
    }
    if detached:
        options["lifetime"] = "detached"
    return ray.remote(RewardActor).options(**options).remote(service, spec, index)


def _await_start(handles: Sequence[Any]) -> None:
    try:
        ray.get([handle.sources.remote() for handle in handles], timeout=START_TIMEOUT_S)
    except RayTaskError as error:
        raise error.cause from None
    except GetTimeoutError:
        raise ValueError(
            f"rewards.pools: {len(handles)} replicas did not all start within {START_TIMEOUT_S:g} s; give "
            "what the cluster has free (replicas, cpus, gpus; `ray status` shows it)"
        ) from None


def _answered(answer: Any) -> list[ReplicaStats]:
    """A replica's statistics, or nothing where it is being started again."""
    try:
        stats: ReplicaStats = ray.get(answer)
    except RayActorError:
        return []
    return [stats]
