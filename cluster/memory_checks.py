"""Gate G0 before a run: whether its processes fit into the memory of the GPU they share, or of the machine.

Always true here: nothing is loaded; a row that fails names changes each of which, by the same calculation,
would make it pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cluster.check import Check
from cluster.gpu_checks import CARDS, GIB, MIB, card_bytes, local_gpus
from evaluation.memory_audit import ProcessMemory, env_runner_memory, reward_replica_memory
from learner.config import RunConfig
from learner.placement import Demand
from learner.resources import EPSILON, meet

NAME = "memory audit"


@dataclass(frozen=True)
class Sharing:
    """What is on one GPU together, or on a machine without one."""

    runner: ProcessMemory
    runners: int
    replica: ProcessMemory
    replicas: int

    @property
    def total(self) -> float:
        """Bytes of all of them."""
        return self.runners * self.runner.total + self.replicas * self.replica.total

    def told(self) -> str:
        """How many of which, and how much each takes."""
        both = ((self.runners, self.runner), (self.replicas, self.replica))
        named = [f"{count} x {each.what} {each.total / GIB:.1f}" for count, each in both if count]
        return f"{' + '.join(named)} = {self.total / GIB:.1f} GiB"


def audits(
    run: RunConfig, pools: list[Demand], card: str | None
) -> Iterator[tuple[Check, list[ProcessMemory]]]:
    """A row for each memory that processes share, with what they consist of."""
    cuda = run.backbone.device != "cpu"
    for shared in sharings(run, pools):
        room, where = _room(card, cuda)
        parts = [
            each
            for each, count in ((shared.runner, shared.runners), (shared.replica, shared.replicas))
            if count
        ]
        if room is None:
            names = "--gpu CARD holds it against a card"
            yield Check(NAME, True, f"{shared.told()}; no GPU here: {names}"), parts
            continue
        fits = shared.total <= room
        hint = "" if fits else _hint(run, shared, room, pools)
        yield Check(NAME, fits, f"{shared.told()} of {room / GIB:.1f} on {where}", hint), parts


def sharings(run: RunConfig, pools: list[Demand]) -> list[Sharing]:
    """Who shares a memory: everyone on a machine without GPUs, else those whom Ray may put on one GPU."""
    resources = run.resources
    runner = env_runner_memory(run.backbone, run.engine, resources)
    batch = max((pool.batch_size for pool in run.rewards.pools.values()), default=1)
    scoring = any(pool.gpus for pool in pools)
    replica = reward_replica_memory(run.backbone.scorers, on_gpu=scoring, batch=batch)
    replicas = sum(pool.count for pool in pools)
    if not runner.on_gpu:
        return [Sharing(runner, max(resources.num_env_runners, 1), replica, 0 if scoring else replicas)]
    share = resources.gpus_per_env_runner
    together = min(max(resources.num_env_runners, 1), _per_gpu(share))
    if not scoring:
        return [Sharing(runner, together, replica, 0)]
    gpus = max(pool.gpus for pool in pools)
    if resources.share_gpus and meet(share, gpus):
        left = 1 - together * share
        return [Sharing(runner, together, replica, min(replicas, math.floor(left / gpus + EPSILON)))]
    return [Sharing(runner, together, replica, 0), Sharing(runner, 0, replica, min(replicas, _per_gpu(gpus)))]


def _per_gpu(share: float) -> int:
    return math.floor(1 / share + EPSILON) if 0 < share < 1 else 1


def _room(card: str | None, cuda: bool) -> tuple[float | None, str]:
    """The memory that there is, and whose; None where a GPU is meant and none is known."""
    if card is not None:
        return card_bytes(card), card
    if cuda:
        smallest = min(local_gpus(), key=lambda gpu: gpu.memory_mib, default=None)
        return (None, "") if smallest is None else (smallest.memory_mib * MIB, smallest.name)
    from tune_configs.admission import free_memory

    return free_memory(), "this machine"


def _hint(run: RunConfig, shared: Sharing, room: float, pools: list[Demand]) -> str:
    """Changes that each would make it fit."""
    works = [name for name, changed in _changes(run, shared, room) if _fits(changed, pools, room)]
    if shared.runners and shared.replicas and shared.runners * shared.runner.total <= room:
        works.append("resources.gpus_per_reward_replica=0 (reward models on CPUs)")
    card = next(
        (name for name, mib in sorted(CARDS.items(), key=lambda item: item[1]) if shared.total <= mib * MIB),
        None,
    )
    if shared.runner.on_gpu and card is not None:
        works.append(f"a card like {card}")
    return (
        "one of: " + "; ".join(works) if works else "fewer and smaller models: no single change makes it fit"
    )


def _changes(run: RunConfig, shared: Sharing, room: float) -> Iterator[tuple[str, Callable[[], RunConfig]]]:
    resources, backbone = run.resources, run.backbone
    if shared.runners:
        alone = (room - shared.replicas * shared.replica.total) / shared.runners
        slots = shared.runner.most_slots(alone, resources.groups)
        if 0 < slots < resources.slots:
            yield f"resources.slots={slots}", lambda: replace(run, resources=replace(resources, slots=slots))
        if resources.memo_mib:
            yield "resources.memo_mib=0", lambda: replace(run, resources=replace(resources, memo_mib=0.0))
        if backbone.dtype == "float32" and shared.runner.on_gpu:
            yield (
                "backbone.dtype=bfloat16",
                lambda: replace(run, backbone=replace(backbone, dtype="bfloat16")),
            )
        if shared.runners > 1:
            yield (
                f"resources.num_env_runners={shared.runners - 1}",
                lambda: replace(run, resources=replace(resources, num_env_runners=shared.runners - 1)),
            )


def _fits(changed: Callable[[], RunConfig], pools: list[Demand], room: float) -> bool:
    return all(shared.total <= room for shared in sharings(changed(), pools))
