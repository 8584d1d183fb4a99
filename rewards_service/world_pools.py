"""The pools that serve a folder of reward models, as the configuration splits them.

Always true: each scorer of the folder is in one pool; a replica with a share of a GPU scores on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rewards_service.actor import PoolSpec
from rewards_service.contracts import Scorer
from rewards_service.pool_config import ServiceConfig


def world_pools(
    config: ServiceConfig, folder: Path, *, replicas: int, cpus: float, gpus: float, torch_threads: int
) -> list[PoolSpec]:
    """One specification a pool; replicas, cpus and gpus are for pools that do not give their own."""
    named = frozenset(name for pool in config.pools.values() for name in pool.scorers)
    specs = []
    for name, pool in config.pools.items():
        filled = replace(
            pool,
            replicas=replicas if pool.replicas is None else pool.replicas,
            cpus=cpus if pool.cpus is None else pool.cpus,
            gpus=gpus if pool.gpus is None else pool.gpus,
        )
        device = "cuda" if filled.gpus else "cpu"
        build = partial(load_some, folder, device, name, frozenset(pool.scorers), named)
        specs.append(PoolSpec(name, folder.name, build, filled, torch_threads))
    return specs


def load_some(
    folder: Path, device: str, pool: str, own: frozenset[str], named: frozenset[str]
) -> Sequence[Scorer]:
    """The scorers called `own`, or where that is empty all but those `named` in any pool.

    Raises ValueError for a name that no scorer of the folder has, and if nothing is left.
    """
    from rewards_service.world import load_scorers  # heavy: only where scorers live

    scorers = load_scorers(folder, device)
    known = [scorer.name for scorer in scorers]
    unknown = sorted(named - set(known))
    if unknown:
        raise ValueError(f"rewards.pools: no scorer is called {unknown[0]!r}; give one of {', '.join(known)}")
    chosen = [scorer for scorer in scorers if (scorer.name in own if own else scorer.name not in named)]
    if not chosen:
        raise ValueError(f"rewards.pools.{pool}: all scorers are in other pools; leave it out")
    return chosen
