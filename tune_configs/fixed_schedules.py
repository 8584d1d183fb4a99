"""Fixed schedules beside a sweep's policies: what the same compute gives where nothing is decided.

Always true here: they run the trials' own backbone and solver, on the prompts and noises that the trials are
judged on, scored by the same reward model; there is no policy in them, so none is ever trained for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

from actors.contracts import EpisodeRequest, Images
from actors.references import reference_config
from evaluation.baselines.names import OWN_FAMILY
from evaluation.bench import HELD_OUT, Bench
from learner.config import RunConfig
from tune_configs.ledger import Ledger, Outcome
from tune_configs.objective import Measured, judged_requests
from tune_configs.plan import TrialSpec, config_key
from tune_configs.schedule_search import judged_images, measure
from tune_configs.sweep_config import SweepConfig
from tune_configs.trial import OpenWorld

PART = "fixed"


def fixed_specs(config: SweepConfig, base: RunConfig, shared: Sequence[str]) -> list[TrialSpec]:
    """One for each number of steps; shared: the overrides that all trials have."""
    family, key = OWN_FAMILY[base.engine.solver], config_key(base.as_dict())
    return [
        TrialSpec(
            id=f"{PART}-{family}-{steps}",
            labels=(f"{PART}/{family}-{steps}",),
            seed=config.seed,
            overrides=(*shared, f"engine.num_steps={steps}"),
            values={},
            key=f"{key}-{steps}",
        )
        for steps in config.fixed
    ]


def is_fixed(spec: TrialSpec) -> bool:
    """Whether it is a schedule, and no training."""
    return spec.labels[0].startswith(f"{PART}/")


def measure_fixed(
    specs: Sequence[TrialSpec],
    config: SweepConfig,
    base: RunConfig,
    bundle: Mapping[str, float],
    open_world: OpenWorld,
    ledger: Ledger,
    report: Callable[[str], None],
) -> None:
    """Measure them one after another, each in a process with a `bundle`, which is what a denoiser needs."""
    custom = {kind: size for kind, size in bundle.items() if kind not in ("CPU", "GPU")}
    options = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0), "resources": custom}
    task = ray.remote(**options)(_measured)
    requests = judged_requests(base, config.judge)
    for spec in specs:
        steps, started = int(spec.id.rpartition("-")[2]), time.monotonic()
        try:
            found = ray.get(task.remote(open_world, base, steps, requests, config.judge.seeds))
            outcome = Outcome(spec, "finished", seconds=time.monotonic() - started, measured=found)
        except (RayTaskError, RayActorError, WorkerCrashedError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            said = f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"
            outcome = Outcome(spec, "failed", error=said)
        ledger.add(outcome)
        utility = outcome.metric("utility")
        told = outcome.error if utility is None else f"held-out utility {utility:.4f}"
        report(f"{spec.id}: {outcome.status}, {told}")


def _measured(
    open_world: OpenWorld, base: RunConfig, steps: int, requests: Sequence[EpisodeRequest], seeds: int
) -> Measured:
    torch.set_num_threads(base.resources.torch_threads)
    score = base.watch.score
    with open_world(base) as world:
        backbone, client = world.make_backbone(), world.make_client()

        def judge(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
            return client.score(images, prompts, (score,))[score]

        outputs = tuple(dict.fromkeys(("image_reward", score)))
        bench = Bench(backbone, client, judge, HELD_OUT, backbone.identity, outputs)
        rows = measure(bench, reference_config(base.engine, steps), requests, base.resources.slots)
    return judged_images(rows, seeds)
