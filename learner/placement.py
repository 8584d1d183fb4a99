"""Whether a cluster has room for a run, and whether its nodes keep denoisers and reward replicas apart.

Always true here: what does not fit is one line that names the option, what is asked for and what is there.
Nothing here asks Ray: `session.await_room` does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.errors import UserError
from learner.resources import EPSILON, ResourcesConfig, meet
from rewards_service.pool_config import ServiceConfig, node_label

RUNNER = "env runner"


@dataclass(frozen=True)
class Demand:
    """`count` processes of one kind; resource: what a node has to offer.

    option, resource_option: how the user asked for them; value: of `option`, None: it is their number.
    """

    what: str
    option: str
    count: int
    cpus: float
    gpus: float
    resource: str | None
    resource_option: str
    value: float | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """Of one process, as Ray counts."""
        sizes = {"CPU": self.cpus, "GPU": self.gpus} | node_label(self.resource)
        return {kind: size for kind, size in sizes.items() if size}


@dataclass
class Node:
    """What is free on one: each GPU by itself, as a process gets whole ones or a share of a single one."""

    cpus: float
    gpus: list[float]
    offers: frozenset[str]

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Node:
        """As Ray lists a node's resources; where a share is free, on which GPU is not known."""
        whole, share = divmod(resources.get("GPU", 0.0) + EPSILON, 1.0)
        gpus = [1.0] * int(whole) + ([share] if share > 2 * EPSILON else [])
        offers = frozenset(kind for kind, size in resources.items() if size > EPSILON)
        return cls(resources.get("CPU", 0.0), gpus, offers)

    def take(self, demand: Demand) -> bool:
        """Put one process here if it fits."""
        fitting = [index for index, free in enumerate(self.gpus) if free + EPSILON >= min(demand.gpus, 1.0)]
        wanted = max(int(demand.gpus), 1) if demand.gpus else 0
        missing = demand.resource is not None and demand.resource not in self.offers
        if missing or self.cpus + EPSILON < demand.cpus or len(fitting) < wanted:
            return False
        self.cpus -= demand.cpus
        for index in fitting[:wanted]:
            self.gpus[index] -= min(demand.gpus, 1.0)
        return True


def demands(resources: ResourcesConfig, rewards: ServiceConfig) -> list[Demand]:
    """Everything that a run starts beside its driver: env runners, and reward replicas of its own."""
    found = [
        Demand(
            RUNNER,
            "resources.num_env_runners",
            resources.num_env_runners,
            resources.cpus_per_env_runner,
            resources.gpus_per_env_runner,
            resources.denoiser_resource,
            "resources.denoiser_resource",
        )
    ]
    pools = rewards.filled(
        resources.reward_replicas,
        resources.cpus_per_reward_replica,
        resources.gpus_per_reward_replica,
        resources.rewards_resource,
    )
    for name, pool in pools.items() if rewards.service is None else ():
        own, prefix = rewards.pools[name], f"rewards.pools.{name}"
        found.append(
            Demand(
                f"reward replica of pool {name!r}",
                "resources.reward_replicas" if own.replicas is None else f"{prefix}.replicas",
                pool.replicas or 1,
                pool.cpus or 0.0,
                pool.gpus or 0.0,
                pool.resource,
                "resources.rewards_resource" if own.resource is None else f"{prefix}.resource",
            )
        )
    return [demand for demand in found if demand.count]


def lack(wanted: Iterable[Demand], nodes: Sequence[Node]) -> str | None:
    """What there is no room for on these nodes, in one line; None if all of it fits."""
    left = copy.deepcopy(list(nodes))
    # The largest first; on the node with the fewest GPUs that will do, as Ray keeps GPU nodes for their use.
    for demand in sorted(wanted, key=lambda each: (-each.gpus, each.resource is None, -each.cpus)):
        placed = 0
        for _ in range(demand.count):
            left.sort(key=lambda node: (sum(node.gpus), node.cpus))
            placed += any(node.take(demand) for node in left)
        if placed < demand.count:
            return _missing(demand, placed, nodes)
    return None


def check_apart(resources: ResourcesConfig, wanted: Sequence[Demand], nodes: Sequence[Node]) -> None:
    """UserError for a node that offers both custom resources, where shares of a GPU could meet."""
    if resources.share_gpus or resources.denoiser_resource is None:
        return
    for demand in wanted:
        if demand.resource in (None, resources.denoiser_resource):
            continue
        if not meet(resources.gpus_per_env_runner, demand.gpus):
            continue
        if any(node.gpus and {demand.resource, resources.denoiser_resource} <= node.offers for node in nodes):
            raise UserError(
                f"resources.gpus_per_env_runner={resources.gpus_per_env_runner:g}: a node of the cluster "
                f"offers both {resources.denoiser_resource!r} and {demand.resource!r}, where a {demand.what} "
                f"with {demand.gpus:g} GPU may get the same one; give whole GPUs, let the node offer one of "
                "the two, or resources.share_gpus=true"
            )


def _missing(demand: Demand, placed: int, nodes: Sequence[Node]) -> str:
    start = "" if demand.resource is None else f"ray start --resources='{{\"{demand.resource}\": 1}}'"
    fitting = [node for node in nodes if demand.resource is None or demand.resource in node.offers]
    if not fitting:
        return (
            f"{demand.resource_option}={demand.resource!r}: none of the cluster's {len(nodes)} nodes offers "
            f"it; start nodes with {start}, or give null for any node"
        )
    offered = "" if demand.resource is None else f" on a node that offers {demand.resource!r}"
    gpus = sum(sum(node.gpus) for node in fitting)
    cpus = sum(node.cpus for node in fitting)
    value = demand.count if demand.value is None else demand.value
    return (
        f"{demand.option}={value:g}: each {demand.what} asks for {_sizes(demand.gpus, demand.cpus)}"
        f"{offered}; {len(fitting)} such nodes have {_sizes(gpus, cpus)}, beside the rest of the run room "
        f"for {placed} of {demand.count}; lower it, or start more nodes"
    )


def _sizes(gpus: float, cpus: float) -> str:
    return f"{gpus:g} GPUs and {cpus:g} CPUs"


def describe_nodes(nodes: Iterable[Mapping[str, Any]]) -> str:
    """`ray.nodes()` in a few words: how many live, and what they have together."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    kinds = sorted({kind for each in alive for kind in each if kind.startswith("addiffusion_")})
    labelled = [f"{sum(kind in each for each in alive)} with {kind}" for kind in kinds]
    totals = _sizes(sum(each.get("GPU", 0.0) for each in alive), sum(each.get("CPU", 0.0) for each in alive))
    return ", ".join([f"{len(alive)} nodes", totals, *labelled])
