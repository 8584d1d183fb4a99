"""Ray Tune's part of a sweep: what it is given, and what is kept of what it tells.

Always true here: a trial that has ended is in the ledger before the next one begins; nothing that Tune
stores of an experiment is ever read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from tune_configs.ledger import Ledger, Outcome
from tune_configs.objective import Measured
from tune_configs.plan import Place, TrialSpec
from tune_configs.search import Handout
from tune_configs.sweep_config import Dimension, SweepConfig
from tune_configs.trial import OBJECTIVE, SPEC, OpenWorld, PolicyTrial, spec_of

Report = Callable[[str], None]


class Population(PopulationBasedTraining):
    """Tune's population-based training, but a member that takes over another's numbers stays itself.

    Tune hands it the other's whole configuration, in which our trials have their name and folder.
    """

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return {**config, SPEC: trial.config[SPEC]}, operations


class Recorder(tune.Callback):
    """Writes the ledger, and says what happens."""

    def __init__(self, ledger: Ledger, report: Report, total: int) -> None:
        self._ledger, self._report, self._total, self._done = ledger, report, total, 0

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Say how a trial goes."""
        if "status" not in result:
            watched = result["watched"]
            self._report(
                f"{_trial_name(trial)}: iteration {result['iteration']}, held-out utility "
                f"{watched['utility']:.4f} at {watched['nfe']:.1f} NFE"
            )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Keep what a trial came to."""
        self._keep(outcome_of(spec_of(trial.config), trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Keep that its process kept dying."""
        result = {**(trial.last_result or {}), "status": "failed", "error": _death(trial)}
        self._keep(outcome_of(spec_of(trial.config), result))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, to restore an experiment itself, which is never asked of it."""
        return {}

    def _keep(self, outcome: Outcome) -> None:
        self._ledger.add(outcome)
        self._done += 1
        found = outcome.metric("utility")
        told = outcome.error or (f"held-out utility {found:.4f}" if found is not None else "")
        self._report(f"{outcome.spec.id}: {outcome.status} ({self._done} of {self._total}), {told}")


def make_tuner(
    config: SweepConfig,
    iterations: int,
    place: Place,
    bundles: Sequence[Mapping[str, float]],
    open_world: OpenWorld,
    missing: Sequence[TrialSpec],
    handout: Handout | None,
    recorder: Recorder,
) -> tune.Tuner:
    """Tune's part of a sweep; `fit()` runs it.

    iterations: of a whole trial; bundles: what Ray reserves for one; handout: where trials come from, None
    for a population, which is `missing`.
    """
    trainable = tune.with_resources(
        tune.with_parameters(PolicyTrial, sweep=config, place=place, open_world=open_world),
        tune.PlacementGroupFactory([{kind: n for kind, n in each.items() if n} for each in bundles]),
    )
    space: dict[str, Any] = {}
    if handout is None:
        space = {SPEC: tune.grid_search([spec.to_json() for spec in missing])}
        space |= {name: tune.sample_from(functools.partial(_planned_value, name)) for name in config.space}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            search_alg=handout,
            scheduler=_scheduler(config, iterations),
            num_samples=1 if handout is None else -1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(place.folder),
            callbacks=[recorder],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials have their own
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            verbose=0,
        ),
    )


def _scheduler(config: SweepConfig, iterations: int) -> TrialScheduler:
    if config.scheduler == "asha":
        return ASHAScheduler(
            time_attr="iteration",
            max_t=iterations + 1,  # the last report is the trial's own end
            grace_period=config.grace,
            reduction_factor=config.reduction_factor,
        )
    if config.scheduler == "pbt":
        return Population(
            time_attr="iteration",
            perturbation_interval=config.perturbation_interval,
            synch=True,  # else a member that started late has nobody left to exchange with
            hyperparam_mutations={name: _domain(one) for name, one in config.space.items()},
        )
    return FIFOScheduler()


def _domain(dimension: Dimension) -> Any:
    if dimension.uniform is not None:
        return tune.uniform(*dimension.uniform)
    if dimension.loguniform is not None:
        return tune.loguniform(*dimension.loguniform)
    return list(dimension.grid or dimension.choice)


def _planned_value(name: str, config: Mapping[str, Any]) -> Any:
    return spec_of(config).values[name]


def _trial_name(trial: Trial) -> str:
    return spec_of(trial.config).id


def outcome_of(spec: TrialSpec, result: Mapping[str, Any]) -> Outcome:
    """What a trial's last report says; a report that is not its own end is of a trial that was stopped."""
    measured = result.get("measured")
    return Outcome(
        spec=spec,
        status=result.get("status", "stopped"),
        iterations=int(result.get("iteration", 0)),
        seconds=float(result.get("seconds", 0.0)),
        ended=result.get("ended"),
        measured=None
        if measured is None
        else Measured(**{name: tuple(values) for name, values in measured.items()}),
        watched=dict(result.get("watched", {})),
        error=result.get("error"),
    )


def _death(trial: Trial) -> str:
    error = trial.get_error()
    return f"its process died: {' '.join(str(error).split())[:300]}" if error else "its process died"
