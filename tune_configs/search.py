"""Hands trials out to Ray Tune: those of a plan that are not done, or what Optuna proposes next.

Always true here: no more trials run at a time than admission allows; every trial is handed out once; a
proposal knows every earlier outcome, also of those that an interrupted sweep had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tune_configs.admission import Admission
from tune_configs.ledger import Ledger
from tune_configs.objective import better
from tune_configs.plan import Planner, TrialSpec, overrides_of
from tune_configs.sweep_config import Dimension, Scalar
from tune_configs.trial import OBJECTIVE, SPEC


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> TrialSpec | None:
        """The next trial to run; None if there is none any more."""
        ...

    def tell(self, spec: TrialSpec, objective: float | None) -> None:
        """What a trial came to; None if it failed."""
        ...


class Planned:
    """Trials that are known beforehand, in their order."""

    def __init__(self, specs: Sequence[TrialSpec]) -> None:
        self._left = deque(specs)

    def next(self) -> TrialSpec | None:
        """The next one."""
        return self._left.popleft() if self._left else None

    def tell(self, spec: TrialSpec, objective: float | None) -> None:
        """Nothing follows from it."""


class Proposed:
    """Trials that Optuna's TPE sampler proposes, each from the outcomes of those before it."""

    def __init__(self, planner: Planner, ledger: Ledger) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._planner = planner
        ((self._part, self._config),) = planner.sweep.parts.items()
        config = self._config
        self._distributions = {name: distribution(one) for name, one in config.space.items()}
        self._sign = better(config.metric)
        self._open: dict[str, optuna.trial.Trial] = {}
        digits = len(str(config.trials - 1))
        names = [f"t{index:0{digits}d}" for index in range(config.trials)]
        done = self._learn(ledger)
        self._left = deque(name for name in names if name not in done)
        # A sampler's first draws are random: seeded alike, a resumed sweep would draw the first ones again.
        sampler = TPESampler(seed=config.seed + 1000 * len(done), constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._study.add_trials(list(done.values()))

    def next(self) -> TrialSpec | None:
        """What is proposed next."""
        if not self._left:
            return None
        proposal = self._study.ask(self._distributions)
        values: dict[str, Scalar] = dict(proposal.params)
        variant, (seed,) = self._left.popleft(), self._config.seeds
        spec = self._planner.trial(self._part, variant, values, overrides_of(values), seed)
        self._open[spec.id] = proposal
        return spec

    def tell(self, spec: TrialSpec, objective: float | None) -> None:
        """Learn an outcome."""
        proposal = self._open.pop(spec.id)
        if objective is None:
            self._study.tell(proposal, state=TrialState.FAIL)
        else:
            self._study.tell(proposal, objective)

    def _learn(self, ledger: Ledger) -> dict[str, optuna.trial.FrozenTrial]:
        """What an interrupted sweep knew already, by the variant's name."""
        known = {}
        for outcome in ledger.outcomes.values():
            value = outcome.metric(self._config.metric)
            if outcome.status != "failed" and value is not None:
                known[outcome.spec.labels[0].rpartition("/")[2]] = optuna.trial.create_trial(
                    params=dict(outcome.spec.values),
                    distributions=self._distributions,
                    value=self._sign * value,
                )
        return known


class Handout(Searcher):
    """A source as Tune's searcher."""

    def __init__(self, source: Source, admission: Admission) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._source = source
        self._admission = admission
        self._running: dict[str, TrialSpec] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial; None to be asked again later; Searcher.FINISHED."""
        if not self._admission.admits(len(self._running)):
            return None
        spec = self._source.next()
        if spec is None:
            finished: str = Searcher.FINISHED
            return finished
        self._running[trial_id] = spec
        return {SPEC: spec.to_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take a report: what a trial needs decides how many there may be."""
        self._admission.learn(result, max(len(self._running), 1))

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the source."""
        spec = self._running.pop(trial_id)
        self._source.tell(spec, None if error or result is None else result.get(OBJECTIVE))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, to restore an experiment itself, which is never asked of it."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a sweep is resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's words."""
    if dimension.uniform is not None:
        return FloatDistribution(*dimension.uniform)
    if dimension.loguniform is not None:
        return FloatDistribution(*dimension.loguniform, log=True)
    return CategoricalDistribution(dimension.choice)
