"""Searches the timesteps of fixed schedules: a baseline that adapts to the model, and not to the prompt.

AutoDiffusion (Li et al. 2023) found by evolution that a trained model can be sampled at better timesteps
than evenly spaced ones. Here Optuna's TPE proposes N gaps between the noisiest timestep and 0; the first
proposal is the solver's own spacing, so that what is found is no worse on the captions searched on.

Always true here: proposals are tried on training captions, all on the same noises, and only the best of
them is judged, on the held-out captions that policies are judged on; every schedule costs the same NFE;
what was tried is in a file, and a search that was interrupted goes on from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler

from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig
from actors.references import reference_config
from evaluation.baselines import Baseline
from evaluation.baselines.names import OWN_FAMILY
from evaluation.bench import Bench, held_out_recipe
from evaluation.config import EvaluationConfig
from evaluation.generate import generate, jobs_of
from evaluation.methods import BaselineMethod
from evaluation.rows import ImageRow
from learner.config import RunConfig
from learner.json_lines import JsonLines, read_rows
from learner.train import training_requests
from tune_configs.ledger import Ledger, Outcome, is_done
from tune_configs.objective import Measured, judged_requests
from tune_configs.plan import TrialSpec, config_key
from tune_configs.sweep_config import ScheduleSearch, SweepConfig

TRIED = "search.jsonl"
SPACED, SEARCHED = "spaced", "searched"
_FLOOR = 0.02
"""Of a gap, as a share of the largest: none vanishes."""


def schedule_parts(config: SweepConfig) -> dict[str, SweepConfig]:
    """One part for each number of steps, in which the solver's own spacing is the reference."""
    assert config.schedule is not None
    variants: dict[str, tuple[str, ...]] = {SPACED: (), SEARCHED: ()}
    return {
        f"steps-{steps}": replace(config, schedule=None, variants=variants, reference=SPACED)
        for steps in config.schedule.steps
    }


def schedule_specs(config: SweepConfig, base: RunConfig, overrides: Sequence[str]) -> list[TrialSpec]:
    """What is measured: both schedules of each number of steps."""
    assert config.schedule is not None
    key = config_key(base.as_dict())
    return [
        TrialSpec(
            id=f"steps-{steps}-{kind}",
            labels=(f"steps-{steps}/{kind}",),
            seed=config.seed,
            overrides=(*config.base, *overrides, f"engine.num_steps={steps}"),
            values={},
            key=f"{key}-{config.schedule.proposals}-{config.schedule.prompts}",
        )
        for steps in config.schedule.steps
        for kind in (SPACED, SEARCHED)
    ]


def search_schedules(
    folder: Path,
    config: SweepConfig,
    base: RunConfig,
    specs: Sequence[TrialSpec],
    report: Callable[[str], None],
    open_bench: Callable[[], Bench] | None = None,
) -> dict[str, Outcome]:
    """Search and judge what is missing; gives all outcomes.

    open_bench: None opens that of the configured backbone.
    """
    assert config.schedule is not None
    ledger = Ledger(folder)
    missing = [spec for spec in specs if not is_done(ledger.outcomes, spec)]
    if not missing:
        return ledger.outcomes
    bench = open_bench_of(base) if open_bench is None else open_bench()
    judged = judged_requests(base, config.judge)
    for spec in missing:
        started = time.monotonic()
        steps = int(spec.id.split("-")[1])
        engine = reference_config(base.engine, steps)
        found = spec
        if spec.id.endswith(SEARCHED):
            timesteps = _best(folder / spec.id, bench, engine, config.schedule, base, config.seed, report)
            engine = replace(engine, timesteps=timesteps)
            told = ",".join(map(str, timesteps))
            found = replace(spec, overrides=(*spec.overrides, f"engine.timesteps=[{told}]"))
        rows = measure(bench, engine, judged, base.resources.slots)
        outcome = Outcome(
            found,
            "finished",
            seconds=time.monotonic() - started,
            measured=judged_images(rows, config.judge.seeds),
        )
        ledger.add(outcome)
        report(f"{spec.id}: held-out utility {outcome.metric('utility'):.4f}")
    return ledger.outcomes


def measure(
    bench: Bench, engine: EngineConfig, requests: Sequence[EpisodeRequest], slots: int
) -> list[ImageRow]:
    """One row for each request, in order: the schedule run to its end."""
    family = OWN_FAMILY[engine.solver]
    method = BaselineMethod(Baseline("fixed", family, engine.solver, engine.num_steps), engine)
    return [row for job in jobs_of(method, requests, slots) for row in generate(bench, job).rows]


def timesteps_of(gaps: Sequence[float], largest: int) -> tuple[int, ...]:
    """N different whole timesteps from `largest` down, from N gaps: shares of the way to 0."""
    steps = len(gaps)
    shares_N = np.maximum(np.asarray(gaps, dtype=np.float64), _FLOOR * max(gaps))
    reached_N: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(shares_N / shares_N.sum())[:-1]])
    times = np.round(largest * (1.0 - reached_N)).astype(int)
    for index in range(1, steps):  # rounding may join neighbours
        times[index] = min(times[index], times[index - 1] - 1)
    lowest = np.arange(steps - 1, -1, -1)
    return tuple(int(t) for t in np.maximum(times, lowest))


def gaps_of(timesteps: Sequence[float]) -> list[float]:
    """The gaps that give these timesteps, the largest of them 1."""
    gaps_N = -np.diff([*timesteps, 0.0])
    return [max(float(gap), _FLOOR) for gap in gaps_N / gaps_N.max()]


def _best(
    folder: Path,
    bench: Bench,
    engine: EngineConfig,
    search: ScheduleSearch,
    base: RunConfig,
    seed: int,
    report: Callable[[str], None],
) -> tuple[int, ...]:
    """The best timesteps of a search, which goes on where it was."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    requests = list(dict.fromkeys(training_requests(base)))[: search.prompts]
    points = Engine(bench.backbone, engine).schedule.points
    own = [point.timestep for point in points]
    largest = round(own[0])
    tried = read_rows(folder / TRIED)
    file = JsonLines(folder / TRIED)
    distributions = {f"gap_{index:02d}": FloatDistribution(_FLOOR, 1.0) for index in range(engine.num_steps)}
    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed + 1000 * len(tried)))
    study.add_trials(list(_known(tried, distributions)))
    if not tried:
        study.enqueue_trial(dict(zip(distributions, gaps_of(own), strict=True)))
    for number in range(len(tried), search.proposals):
        proposal = study.ask(dict(distributions))
        gaps = [float(proposal.params[name]) for name in distributions]
        timesteps = timesteps_of(gaps, largest)
        rows = measure(bench, replace(engine, timesteps=timesteps), requests, base.resources.slots)
        quality = float(np.mean([row.quality for row in rows]))
        study.tell(proposal, quality)
        tried.append({"gaps": gaps, "timesteps": list(timesteps), "quality": quality})
        if (error := file.append(tried[-1])) is not None:
            raise error
        if (number + 1) % 10 == 0:
            report(
                f"{folder.name}: {number + 1} of {search.proposals} schedules, best {study.best_value:.4f}"
            )
    best = max(tried, key=lambda row: row["quality"])
    return tuple(int(t) for t in best["timesteps"])


def _known(
    tried: Sequence[dict[str, Any]], distributions: dict[str, FloatDistribution]
) -> Iterator[optuna.trial.FrozenTrial]:
    for row in tried:
        yield optuna.trial.create_trial(
            params=dict(zip(distributions, row["gaps"], strict=True)),
            distributions=dict(distributions),
            value=float(row["quality"]),
        )


def judged_images(rows: Sequence[ImageRow], seeds: int) -> Measured:
    """Rows in the order of the judge's requests, `seeds` of each prompt."""
    return Measured(
        quality=tuple(row.quality for row in rows),
        nfe=tuple(float(row.nfe) for row in rows),
        cost=tuple(row.cost for row in rows),
        tiers=tuple(row.tier for row in rows[::seeds]),
    )


def open_bench_of(base: RunConfig) -> Bench:
    """The configured backbone, and the score that policies are judged by."""
    backbone, score = base.backbone, base.watch.score
    wanted = EvaluationConfig(
        prompts=base.prompts.source, device=backbone.device, dtype=backbone.dtype, scorers=backbone.scorers
    )
    bench = held_out_recipe(backbone, wanted)()
    return replace(bench, judge=lambda images, prompts: bench.client.score(images, prompts, (score,))[score])
