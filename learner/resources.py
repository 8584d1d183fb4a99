"""How many processes a run has, what Ray reserves for each, and which GPUs they may share.

Always true here: a configuration that lets a reward replica land on a denoiser's GPU is refused, unless it
asks for that. Ray hands whole GPUs to one process each; shares of a GPU it fills up in whatever order they
come, so that 0.5 for an env runner and 0.5 for a reward replica are the same GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.errors import UserError
from rewards_service.pool_config import ServiceConfig

DENOISER = "addiffusion_denoiser"
REWARDS = "addiffusion_rewards"
"""What nodes for env runners and nodes for reward replicas offer: `ray start --resources`."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Of a local Ray. Small: what travels are previews of 64 x 64 pixels, observations, weights of megabytes."""
EPSILON = 1e-6
"""Ray counts in ten-thousandths."""


@dataclass(frozen=True)
class ResourcesConfig:
    """How many processes, where they run, and what each may use.

    num_env_runners: actors that denoise (each holds the backbone), 0 denoises in the driver; slots:
    episodes one of them carries at a time; groups: parts of the slots, one is scored while another
    denoises; cpus_per_env_runner, gpus_per_env_runner, reward_replicas, cpus_per_reward_replica,
    gpus_per_reward_replica: what Ray reserves (a pool of `rewards` may say otherwise for itself);
    denoiser_resource, rewards_resource: the custom resource that a node has to offer, in whatever
    quantity, to get env runners or reward replicas (None: any node); share_gpus: a reward replica may be
    put on an env runner's GPU; address: a running cluster ("auto" finds it), None starts a local one;
    patience_s: how long nodes that an autoscaler starts, and what other jobs hold, are waited for; num_cpus:
    CPUs of a local one (None: all); torch_threads: in every process; memo_mib: memory in each env runner
    for denoiser calls that were made before and need not be made again, and a quarter of it for scores
    (0: none).
    """

    num_env_runners: int = 2
    slots: int = 32
    groups: int = 2
    cpus_per_env_runner: float = 0.5
    gpus_per_env_runner: float = 0.0
    denoiser_resource: str | None = None
    reward_replicas: int = 1
    cpus_per_reward_replica: float = 0.5
    gpus_per_reward_replica: float = 0.0
    rewards_resource: str | None = None
    share_gpus: bool = False
    address: str | None = None
    patience_s: float = 60.0
    num_cpus: int | None = None
    torch_threads: int = 1
    memo_mib: float = 0.0

    def validate(self) -> None:
        """Raise UserError for the first value that cannot work."""
        for option in ("slots", "groups", "reward_replicas", "torch_threads"):
            if (value := getattr(self, option)) < 1:
                raise UserError(f"resources.{option}={value}: give an integer >= 1")
        for option in (
            "num_env_runners",
            "cpus_per_env_runner",
            "gpus_per_env_runner",
            "cpus_per_reward_replica",
            "gpus_per_reward_replica",
            "patience_s",
            "memo_mib",
        ):
            value = getattr(self, option)
            if not (math.isfinite(value) and value >= 0):
                kind = "an integer" if isinstance(value, int) else "a number"
                raise UserError(f"resources.{option}={value}: give {kind} >= 0")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"resources.num_cpus={self.num_cpus}: give an integer >= 1, or null")
        for option in ("gpus_per_env_runner", "gpus_per_reward_replica"):
            check_gpus(f"resources.{option}", getattr(self, option))
        if self.groups > self.slots:
            raise UserError(f"resources.groups={self.groups}: give at most resources.slots={self.slots}")
        for option in ("denoiser_resource", "rewards_resource"):
            name = getattr(self, option)
            if name is not None and self.address is None:
                raise UserError(
                    f"resources.{option}={name!r}: give resources.address too, or null; a local Ray has no "
                    "such nodes"
                )


def check_gpus(option: str, gpus: float) -> None:
    """UserError for more than one GPU that is not a whole number of them, which Ray refuses."""
    if gpus > 1 and not float(gpus).is_integer():
        raise UserError(f"{option}={gpus:g}: give a share up to 1, or a whole number of GPUs")


def check_separate(resources: ResourcesConfig, rewards: ServiceConfig) -> None:
    """UserError where Ray could put a reward replica on a denoiser's GPU without having been asked to.

    Nodes that offer both custom resources are found once there is a cluster (`placement.check_apart`).
    """
    for name, pool in rewards.pools.items():
        gpus = resources.gpus_per_reward_replica if pool.gpus is None else pool.gpus
        check_gpus(f"rewards.pools.{name}.gpus", gpus)
        if rewards.service is not None or resources.share_gpus:
            continue
        resource = resources.rewards_resource if pool.resource is None else pool.resource
        apart = resource != resources.denoiser_resource and None not in (
            resource,
            resources.denoiser_resource,
        )
        if not apart and meet(resources.gpus_per_env_runner, gpus):
            option = (
                "resources.gpus_per_reward_replica" if pool.gpus is None else f"rewards.pools.{name}.gpus"
            )
            raise UserError(
                f"{option}={gpus:g}: beside resources.gpus_per_env_runner="
                f"{resources.gpus_per_env_runner:g} both may get the same GPU; give whole GPUs, nodes of "
                "their own (resources.denoiser_resource, resources.rewards_resource), or "
                "resources.share_gpus=true if they shall share"
            )


def meet(gpus: float, others: float) -> bool:
    """Whether Ray can put two processes with these shares on one GPU."""
    return min(gpus, others) > 0 and gpus + others <= 1 + EPSILON
