"""The processes of a run: Ray itself, the reward actors, and what has to be asked of a worker.

Always true here: what this file starts, it stops; a Ray session that was there before is left running.
The driver does not load the backbone (unless it denoises itself): a worker with an env runner's
resources says what it is like.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
from ray.autoscaler.sdk import request_resources

from actors.backbones.config import BackboneConfig
from actors.contracts import Backbone
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.kept import Kept
from actors.observations import ObservationConfig, ObservationSizes, Observer
from learner.config import RunConfig
from learner.connection import connected
from learner.placement import Demand, Node, check_apart, demands, lack
from learner.resources import ResourcesConfig
from rewards_service import service
from rewards_service.actor import PoolSpec
from rewards_service.contracts import RewardClient
from rewards_service.pool_config import node_label
from rewards_service.scorer_pools import scorer_pools
from shapes import weights

#: A Ray of one's own has nobody to wait for, but processes of an earlier run take a moment to end.
_SETTLING_S = 30.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Description:
    """What the driver must know of a backbone it does not load."""

    identity: str
    observer: Observer


@dataclass(frozen=True)
class World:
    """How a run makes its backbone and reaches its rewards, in whatever process it is needed."""

    make_backbone: Callable[[], Backbone]
    make_client: Callable[[], RewardClient]
    scorers: str
    """Identity of the reward models: references scored by others are not reused."""
    kept: Kept | None = None
    """What the driver keeps from run to run, where it denoises itself."""


@contextlib.contextmanager
def ray_session(config: RunConfig, say: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
    """Ray with room for a run's env runners and reward replicas; see `connected`.

    `say` hears what is waited for. Raises UserError for what there is no room for.
    """
    resources = config.resources
    wanted = demands(resources, config.rewards)
    needed = math.ceil(sum(demand.count * demand.cpus for demand in wanted))
    cpus = resources.num_cpus or max(os.cpu_count() or 1, needed)
    with connected(resources.address, cpus):
        make_room(resources, wanted, say)
        yield


def make_room(
    resources: ResourcesConfig, wanted: Sequence[Demand], say: Callable[[str], None] = lambda sentence: None
) -> None:
    """See to it that the connected Ray has room for `wanted`, on nodes that keep GPUs apart as asked for.

    A cluster is waited for; to a Ray of one's own no node is ever added, and only earlier processes have to
    end. Raises UserError.
    """
    own = resources.address is None
    if own and (lacking := lack(wanted, alive_nodes())) is not None:
        raise UserError(lacking)
    await_room(wanted, _SETTLING_S if own else resources.patience_s, say)
    check_apart(resources, wanted, alive_nodes())


def await_room(
    wanted: Sequence[Demand], patience_s: float, say: Callable[[str], None] = lambda sentence: None
) -> None:
    """Wait until the connected cluster has all of it free, an autoscaler being told meanwhile.

    Raises UserError after `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    asked = False
    try:
        while (lacking := lack(wanted, free_nodes())) is not None:
            lacking = lack(wanted, alive_nodes()) or f"{lacking}; others hold what is missing (`ray status`)"
            if time.monotonic() >= deadline:
                raise UserError(lacking)
            if not asked:
                asked = True
                say(f"waiting up to {patience_s:g} s: {lacking}")
                request_resources(bundles=[demand.bundle for demand in wanted for _ in range(demand.count)])
            time.sleep(min(_POLL_S, max(deadline - time.monotonic(), 0.0)))
    finally:
        if asked:
            request_resources(bundles=[])


def alive_nodes() -> list[Node]:
    """The nodes of the connected cluster, as if nothing ran there."""
    return [Node.of(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[Node]:
    """The same less what is held."""
    held: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return [Node.of(resources) for resources in held.values()]


@contextlib.contextmanager
def world(config: RunConfig) -> Iterator[World]:
    """The configured backbone and rewards: a service that runs already, or pools that end with the context.

    Raises UserError if that service does not run, and for pools that cannot be.
    """
    rewards, replicas = config.rewards, []
    name = rewards.service or f"run-{uuid.uuid4().hex[:8]}"
    make_client = functools.partial(service.connect, name, deadline_s=rewards.deadline_s)
    try:
        try:
            if rewards.service is None:
                replicas = service.start(name, reward_pools(config))
            identity = make_client().identity
        except ValueError as error:
            raise UserError(str(error)) from error
        yield World(functools.partial(_make_backbone, config.backbone), make_client, scorers=identity)
    finally:
        for replica in replicas:
            ray.kill(replica)


def reward_pools(config: RunConfig) -> list[PoolSpec]:
    """What the configuration's rewards service consists of."""
    resources = config.resources
    return scorer_pools(
        config.rewards,
        config.backbone.scorers or str(weights.PATH),
        replicas=resources.reward_replicas,
        cpus=resources.cpus_per_reward_replica,
        gpus=resources.gpus_per_reward_replica,
        resource=resources.rewards_resource,
        torch_threads=resources.torch_threads,
    )


def describe(world: World, config: RunConfig) -> Description:
    """Load the backbone once in a worker; gives its identity and the observer it leads to."""
    resources = config.resources
    if resources.num_env_runners == 0:
        return _describe(world, config.engine, config.observation, resources.torch_threads)
    reserve = ray.remote(
        num_cpus=resources.cpus_per_env_runner,
        num_gpus=resources.gpus_per_env_runner,
        resources=node_label(resources.denoiser_resource),
    )
    ask = reserve(_describe)
    try:
        described: Description = ray.get(
            ask.remote(world, config.engine, config.observation, resources.torch_threads)
        )
        return described
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _describe(
    world: World, engine_config: EngineConfig, observation: ObservationConfig, torch_threads: int
) -> Description:
    torch.set_num_threads(torch_threads)
    engine = Engine(world.make_backbone(), engine_config)
    sizes = ObservationSizes(engine.backbone.feature_dim, engine.backbone.text_dim)
    if observation.policy == "seed":
        image = np.zeros((1, 64, 64, 3), np.uint8)
        embedding = world.make_client().score(image, [""], ["clip_image"])["clip_image"]
        sizes = replace(sizes, embedding_dim=embedding.shape[1])
    return Description(engine.backbone.identity, Observer(observation, sizes, engine.action_names))


def _make_backbone(config: BackboneConfig) -> Backbone:
    from actors.backbones.loading import load_backbone

    return load_backbone(config)
