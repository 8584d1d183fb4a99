"""What a sweep or an ablation is, typed: which trainings, how each is judged, and how many run at a time.

Always true: a config that exists is usable; every impossible value was refused by name. Nothing here knows
what may be varied: a trial's own options are checked where they are composed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Scalar = bool | int | float | str
Scheduler = Literal["none", "asha", "pbt"]
"""none: every trial to its end. asha: asynchronous successive halving (Li et al. 2020). pbt: population based
training (Jaderberg et al. 2017)."""
Searcher = Literal["none", "optuna"]
"""none: grid or draws. optuna: its TPE sampler (Bergstra et al. 2011, Akiba et al. 2019)."""
Metric = Literal["utility", "quality", "nfe", "cost"]
"""What trials are ranked by; the last two are better the lower they are."""
LOWER_IS_BETTER: tuple[Metric, ...] = ("nfe", "cost")


@dataclass(frozen=True)
class Dimension:
    """The values that one option may take: exactly one of the four.

    grid: each of them; choice: one drawn from them; uniform, loguniform: from low to high.
    """

    grid: tuple[Scalar, ...] = ()
    choice: tuple[Scalar, ...] = ()
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("grid", "choice", "uniform", "loguniform") if getattr(self, name)]
        if not given:
            raise ValueError("grid: nothing; accepted: values, or else choice, uniform or loguniform")
        if len(given) > 1:
            raise ValueError(
                f"{given[1]}: {list(getattr(self, given[1]))}; accepted: nothing beside {given[0]}"
            )
        for name in ("uniform", "loguniform"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name}: {list(bounds)}; accepted: a lower and a higher bound")
        if self.loguniform is not None and not self.loguniform[0] > 0:
            raise ValueError(f"loguniform: {list(self.loguniform)}; accepted: bounds above 0")
        for name in ("grid", "choice"):
            values = getattr(self, name)
            if len(set(map(str, values))) < len(values):
                raise ValueError(f"{name}: {list(values)}; accepted: different values")

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """What any value lies between, or is one of."""
        return self.uniform or self.loguniform or self.grid or self.choice

    def bounded(self, value: Any) -> Any:
        """The value, or the bound that it is beyond."""
        bounds = self.uniform or self.loguniform
        return value if bounds is None else min(max(value, bounds[0]), bounds[1])


@dataclass(frozen=True)
class JudgeConfig:
    """What a finished policy is measured on: see `tune_configs.objective`.

    prompts: held-out prompts, at most so many; seeds: images of each; seed: fixes their noise;
    fewest_prompts: early stopping never judges on fewer; resamples: of the bootstrap over prompts.
    """

    prompts: int = 80
    seeds: int = 2
    seed: int = 0
    fewest_prompts: int = 30
    resamples: int = 10_000

    def __post_init__(self) -> None:
        for option, least in (("prompts", 2), ("seeds", 1), ("seed", 0), ("fewest_prompts", 2)):
            _at_least(option, getattr(self, option), least)
        _at_least("resamples", self.resamples, 100)
        if self.prompts < self.fewest_prompts:
            raise ValueError(
                f"prompts: {self.prompts}; accepted: fewest_prompts={self.fewest_prompts} or more"
            )


@dataclass(frozen=True)
class ScheduleSearch:
    """Timesteps of fixed schedules, searched without a policy: see `tune_configs.schedule_search`.

    steps: one search for each number of steps; proposals: schedules tried in each; prompts: captions of the
    training split that they are tried on, one image each.
    """

    steps: tuple[int, ...] = (7,)
    proposals: int = 150
    prompts: int = 48

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 2 or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps: {list(self.steps)}; accepted: one or more different numbers from 2")
        _at_least("proposals", self.proposals, 1)
        _at_least("prompts", self.prompts, 2)


@dataclass(frozen=True)
class SweepConfig:
    """One file of tune_configs/sweep/ or tune_configs/ablation/.

    description: a sentence; base: overrides of every trial; variants: named lists of overrides, or space:
    options with their values, or parts: files beside this one, all in one table, or schedule: fixed
    schedules instead of policies; fixed: numbers of steps of fixed schedules that are measured beside the
    policies; reference: the variant that the others are compared with; seeds: each variant is trained with
    each; trials: how many are drawn from a space that is no grid; seed: of these draws; metric: what trials
    are ranked by; scheduler, searcher: see there; grace: iterations that asha leaves every trial;
    reduction_factor: of the trials of one rung, one of so many goes on; perturbation_interval: iterations
    between two exchanges of pbt; judge: of finished policies; cpus_per_trial: of its own process, env
    runners come on top; max_concurrent: trials at a time at most (null: what CPUs, GPUs and measured memory
    allow); memory_reserve_gib: left free on each machine; max_failures: how often a trial whose process
    died is tried again; long: overrides of the training that the best `promoted` configurations go on to.
    """

    description: str
    base: tuple[str, ...] = ()
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    space: Mapping[str, Dimension] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    schedule: ScheduleSearch | None = None
    fixed: tuple[int, ...] = ()
    reference: str | None = None
    seeds: tuple[int, ...] = (0,)
    trials: int = 20
    seed: int = 0
    metric: Metric = "utility"
    scheduler: Scheduler = "none"
    searcher: Searcher = "none"
    grace: int = 20
    reduction_factor: int = 3
    perturbation_interval: int = 10
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    cpus_per_trial: float = 0.75
    max_concurrent: int | None = None
    memory_reserve_gib: float = 1.0
    max_failures: int = 2
    promoted: int = 3
    long: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if sum(map(bool, (self.variants, self.space, self.parts, self.schedule))) != 1:
            raise ValueError("variants: give these, or a space, parts or a schedule; one of the four")
        if self.reference is not None and self.reference not in self.variants:
            raise ValueError(f"reference: {self.reference!r}; accepted: one of {', '.join(self.variants)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: {list(self.seeds)}; accepted: one or more different numbers from 0")
        for option, least in (
            ("trials", 1),
            ("seed", 0),
            ("grace", 1),
            ("reduction_factor", 2),
            ("perturbation_interval", 1),
            ("max_failures", 0),
            ("promoted", 1),
        ):
            _at_least(option, getattr(self, option), least)
        if self.max_concurrent is not None:
            _at_least("max_concurrent", self.max_concurrent, 1)
        for option in ("cpus_per_trial", "memory_reserve_gib"):
            value = getattr(self, option)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{option}: {value}; accepted: a number from 0")
        self._check_fixed()
        self._check_search()

    def _check_fixed(self) -> None:
        if self.fixed and (min(self.fixed) < 1 or len(set(self.fixed)) < len(self.fixed)):
            raise ValueError(f"fixed: {list(self.fixed)}; accepted: different numbers of steps from 1")
        if self.fixed and (self.schedule is not None or self.searcher != "none"):
            raise ValueError(f"fixed: {list(self.fixed)}; accepted: none, with a schedule or a searcher")

    def _check_search(self) -> None:
        if self.schedule is not None and len(self.seeds) > 1:
            raise ValueError(f"seeds: {list(self.seeds)}; accepted: one, as a fixed schedule is not trained")
        for option in ("scheduler", "searcher"):
            value = getattr(self, option)
            if value != "none" and not self.space:
                raise ValueError(f"{option}: {value!r}; accepted: none, as there is no space to search")
            if value != "none" and len(self.seeds) > 1:
                raise ValueError(f"seeds: {list(self.seeds)}; accepted: one, with {option}={value}")
        if self.scheduler == "pbt" and self.searcher != "none":
            raise ValueError(f"searcher: {self.searcher!r}; accepted: none, as pbt changes trials itself")
        if self.scheduler == "pbt" and self.max_concurrent is not None and self.max_concurrent < self.trials:
            raise ValueError(
                f"max_concurrent: {self.max_concurrent}; accepted: {self.trials} (sweep.trials) or more, or "
                "null, as the members of a population wait for one another"
            )
        if self.searcher == "optuna" and any(dimension.grid for dimension in self.space.values()):
            raise ValueError("searcher: 'optuna'; accepted: none, as a grid leaves nothing to search")

    @property
    def drawn(self) -> bool:
        """Whether the space has to be drawn from: not all of it is a grid."""
        return any(not dimension.grid for dimension in self.space.values())


METRICS: tuple[str, ...] = get_args(Metric)


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{option}: {value}; accepted: a whole number from {least}")
