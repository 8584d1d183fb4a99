"""The pools that serve a run's reward models, as the configuration splits them.

Always true: each scorer is in one pool; a replica loads the scorers of its own pool; with a share of a GPU it
scores there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rewards_service.actor import PoolSpec
from rewards_service.contracts import Scorer
from rewards_service.identity import scorers_identity
from rewards_service.loading import build_scorers
from rewards_service.pool_config import ServiceConfig
from rewards_service.scorers_config import ScorersConfig


def scorer_pools(
    config: ServiceConfig,
    models: str | ScorersConfig,
    *,
    replicas: int,
    cpus: float,
    gpus: float,
    resource: str | None,
    torch_threads: int,
) -> list[PoolSpec]:
    """One specification a pool; replicas, cpus, gpus and resource are for pools that do not give their own.

    models: the folder of an embedded world's reward models, or a configuration.
    """
    named = frozenset(name for pool in config.pools.values() for name in pool.scorers)
    identity = scorers_identity(models)
    specs = []
    for name, filled in config.filled(replicas, cpus, gpus, resource).items():
        device = "cuda" if filled.gpus else "cpu"
        build = partial(load_some, models, device, name, frozenset(filled.scorers), named)
        specs.append(PoolSpec(name, identity, build, filled, torch_threads))
    return specs


def load_some(
    models: str | ScorersConfig, device: str, pool: str, own: frozenset[str], named: frozenset[str]
) -> Sequence[Scorer]:
    """The scorers called `own`, or where that is empty all but those `named` in any pool.

    Raises ValueError for a name that no scorer has, if nothing is left, and for what cannot be loaded.
    """
    if isinstance(models, ScorersConfig):  # they are large: only what is served here is loaded
        parts = models.scorer_parts()
        chosen = _choose(pool, list(parts), own, named)
        left_out = {part: None for name, owned in parts.items() if name not in chosen for part in owned}
        return build_scorers(replace(models, **left_out), device)
    scorers = build_scorers(models, device)
    chosen = _choose(pool, [scorer.name for scorer in scorers], own, named)
    return [scorer for scorer in scorers if scorer.name in chosen]


def _choose(pool: str, known: Sequence[str], own: frozenset[str], named: frozenset[str]) -> list[str]:
    unknown = sorted(named - set(known))
    if unknown:
        raise ValueError(f"rewards.pools: no scorer is called {unknown[0]!r}; give one of {', '.join(known)}")
    chosen = [name for name in known if (name in own if own else name not in named)]
    if not chosen:
        raise ValueError(f"rewards.pools.{pool}: all scorers are in other pools; leave it out")
    return chosen
