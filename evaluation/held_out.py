"""The held-out utility: what policies are selected by, and the gate that a new champion has to pass.

Always true here: it is measured on prompts that neither training nor the evaluation uses, by a reward model's
score of the finished image less a fixed price a unit of cost. No trial's weights can scale it, and the exact
verifier has no say. Two policies are compared on the same prompts and seeds, paired by prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.errors import UserError
from actors.policy_folder import TrainedPolicy
from evaluation.baselines import parse_baseline
from evaluation.baselines.names import OWN_FAMILY
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.evaluate import baseline_methods, image_store, images_of
from evaluation.generate import Workers, jobs_of, run_jobs
from evaluation.hypotheses import FEWEST_PROMPTS, equal_cost
from evaluation.methods import Method, read_policy
from evaluation.progress import Progress
from evaluation.rows import ImageRow, MethodTable
from evaluation.statistics import Estimate, Resampling
from rewards_service.arithmetic import utility
from rewards_service.scorers_config import ScorersConfig

MARGIN = 0.01
"""How far below the champion's utility a candidate may still be, by the interval's lower end."""
PROMPTS_PER_TIER = 20
"""As many captions as every tier of the embedded world's validation split has."""
_STEPS = (2, 3, 4, 5, 7, 10, 15, 20, 30, 50)
_TRIES = ((2, 4), (2, 5), (2, 7), (3, 7), (2, 10), (3, 10), (2, 15), (2, 20), (3, 20))
_REACH = 1.5
"""Schedules up to so many times a policy's own cost are on the front that it is compared with."""


@dataclass(frozen=True)
class Verdict:
    """Whether the gate opens, why, and the difference it was decided on."""

    promoted: bool
    reason: str
    against: str
    difference: Estimate


def held_out_config(
    policy: TrainedPolicy,
    *,
    scorers: ScorersConfig | str | None = None,
    prompts: str | None = None,
    per_tier: int | None = None,
    seeds: int = 3,
    device: str | None = None,
) -> EvaluationConfig:
    """Validation prompts for a policy and its reward models. UserError where there are no prompts by default.

    scorers: the reward models that it was trained with, which `policy` does not hold. prompts: a file; None
    is the embedded world's validation split, for its own policies. per_tier: None is PROMPTS_PER_TIER of the
    embedded world, and all of a file.
    """
    if prompts is None and policy.backbone.name != "shapes":
        raise UserError(
            f"--prompts: give a file for backbone {policy.backbone.name!r}, with prompts that neither"
            " training nor evaluation uses"
        )
    source = prompts or "shapes"
    return EvaluationConfig(
        prompts=source,
        split="validation",
        prompts_per_tier=per_tier or (PROMPTS_PER_TIER if source == "shapes" else 1_000_000),
        seeds=seeds,
        device=device or policy.backbone.device,
        dtype=policy.backbone.dtype,
        scorers=scorers,
        workers=1,
    )


def requests_key(requests: Sequence[EpisodeRequest]) -> str:
    """Twelve hex digits that differ whenever prompts or seeds do."""
    pairs = [(request.prompt, request.seed) for request in requests]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:12]


def gate_baselines(engine: EngineConfig, cost: float) -> tuple[str, ...]:
    """Fixed schedules and best-of-N, up to _REACH times a cost in NFE; at least the two cheapest.

    Schedules are of the policy's own solver, which is all that a distilled model has, and of a better one
    where there is one.
    """
    families = [OWN_FAMILY[engine.solver]]
    if engine.solver == "ddim":
        families.append("dpmpp")  # what an engineer would use instead, unless the model was distilled
    names = [f"{family}-{steps}" for family in families for steps in _STEPS]
    names += [f"best-of-{tries}@{steps}" for tries, steps in _TRIES]
    by_cost = sorted(names, key=lambda name: (_nominal(name), name))
    return tuple(name for name in by_cost if _nominal(name) <= _REACH * cost) or tuple(by_cost[:2])


def measure_policy(
    policy_dir: Path,
    requests: Sequence[EpisodeRequest],
    config: EvaluationConfig,
    open_bench: Callable[[], Bench],
    progress: Progress,
) -> list[ImageRow]:
    """One row an image of the policy, in the order of the requests."""
    policy = read_policy(policy_dir, greedy=True, seed=config.seed)
    return _rows(policy, requests, config, open_bench, progress)


def measure_baselines(
    policy_dir: Path,
    requests: Sequence[EpisodeRequest],
    config: EvaluationConfig,
    open_bench: Callable[[], Bench],
    progress: Progress,
    runs_dir: Path,
) -> dict[str, list[ImageRow]]:
    """Rows of every baseline that `config` names; those that were made before are reused."""
    policy = read_policy(policy_dir, greedy=True, seed=config.seed)
    store = image_store(runs_dir, open_bench(), config)
    methods = baseline_methods(policy, config)
    rows, _ = images_of(methods, requests, store, open_bench, config, progress)
    return {method.name: found for method, found in zip(methods, rows, strict=True)}


def utilities(table: MethodTable) -> NDArray[np.float64]:
    """[P]: the held-out utility of each prompt, means over its seeds."""
    columns = zip(table.by_prompt("quality"), table.by_prompt("cost"), strict=True)
    return np.array([utility(float(quality), float(cost)) for quality, cost in columns])


def against_champion(
    candidate: MethodTable, champion: MethodTable, resampling: Resampling, margin: float
) -> Verdict:
    """A successor's gate: its utility is not lower, and by the interval not lower by more than `margin`."""
    difference = resampling.mean(utilities(candidate) - utilities(champion))
    few = _too_few(resampling)
    if few is not None:
        promoted, reason = False, few
    elif difference.value < 0:
        promoted, reason = False, "its held-out utility is lower than the champion's"
    elif difference.low <= -margin:
        reason = f"it may be worse by more than the margin of {margin:g}: measure on more prompts or seeds"
        promoted = False
    else:
        promoted, reason = True, f"not lower than the champion's, by at most {margin:g} with 95% confidence"
    return Verdict(promoted, reason, champion.name, difference)


def against_schedules(
    candidate: MethodTable, baselines: Mapping[str, MethodTable], resampling: Resampling
) -> Verdict:
    """The first champion's gate: better than every fixed schedule of its cost, as H2, by held-out scores."""
    result = equal_cost(candidate, baselines, resampling)
    low, high = result["ci95"]
    difference = Estimate(result["estimate"], low, high, result["p"])
    if (few := _too_few(resampling)) is not None:
        reason = few
    elif result["passed"]:
        reason = "better than every fixed schedule of the same cost"
    else:
        reason = "not shown to be better than fixed schedules of the same cost"
    return Verdict(bool(result["passed"]), reason, result["against"], difference)


def _too_few(resampling: Resampling) -> str | None:
    if resampling.num_prompts >= FEWEST_PROMPTS:
        return None
    return f"{resampling.num_prompts} prompts show nothing; give at least {FEWEST_PROMPTS}"


def _nominal(name: str) -> int:
    return parse_baseline(name).nominal_nfe


def _rows(
    method: Method,
    requests: Sequence[EpisodeRequest],
    config: EvaluationConfig,
    open_bench: Callable[[], Bench],
    progress: Progress,
) -> list[ImageRow]:
    place = {(request.prompt, request.seed): index for index, request in enumerate(requests)}
    rows: list[ImageRow] = []
    for _, made in run_jobs(open_bench, jobs_of(method, requests, config.slots), Workers.of(config)):
        rows += made
        progress(method.name, len(rows), len(requests))
    return sorted(rows, key=lambda row: place[row.prompt, row.seed])
