"""Ray Tune's part of a sweep: what it is given, and what is kept of what it tells.

Always true here: a trial that has ended is in the ledger before the next one begins; nothing that Tune
stores of an experiment is ever read, but for the error of a trial that it gave up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayTaskError
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
    """Tune's synchronous population-based training, in four points other than Tune's.

    A member that takes over another's numbers stays itself: Tune hands it the other's whole configuration, in
    which our trials have their name and folder. Changed values stay within the bounds that they were drawn
    from. A member that ended, well or badly, is not waited for. And where it was the last one that the others
    waited for, they exchange at once: Tune looks only when a member reports.
    """

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(
            time_attr="iteration",
            perturbation_interval=config.perturbation_interval,
            synch=True,  # else a member that started late has nobody left to exchange with
            hyperparam_mutations={name: _domain(one) for name, one in config.space.items()},
        )
        self._space = config.space
        self._ended: set[Trial] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Exchange if this was the last of those that go on."""
        for gone in self._ended:
            state = self._trial_state[gone]
            state.last_train_time = max(state.last_train_time, self._next_perturbation_sync)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Go on without it."""
        self._without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without it."""
        self._without(tune_controller, trial)

    def _without(self, tune_controller: Any, trial: Trial) -> None:
        self._ended.add(trial)
        self._trial_state[trial].last_score = None  # nobody takes over from it
        left = [state for one, state in self._trial_state.items() if one not in self._ended]
        if left and all(state.last_train_time >= self._next_perturbation_sync for state in left):
            waiting = next(one for one in self._trial_state if one not in self._ended)
            self.on_trial_result(tune_controller, waiting, self._trial_state[waiting].last_result)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        bounded = {name: one.bounded(config[name]) for name, one in self._space.items()}
        return {**config, **bounded, SPEC: trial.config[SPEC]}, operations


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
        self._keep(outcome_of(_as_it_ended(trial), trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Keep that its process kept dying."""
        result = {**(trial.last_result or {}), "status": "failed", "error": _death(trial)}
        self._keep(outcome_of(_as_it_ended(trial), result))

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
        tune.PlacementGroupFactory([dict(bundle) for bundle in bundles]),
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
        return Population(config)
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


def _as_it_ended(trial: Trial) -> TrialSpec:
    """Its plan; of a population's member with the values that its policy was trained with last."""
    spec = spec_of(trial.config)
    return replace(spec, values={name: trial.config.get(name, value) for name, value in spec.values.items()})


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
    """What kept ending its process, or what it kept raising, in a line."""
    error = _last_error(trial)
    if error is None or isinstance(error, RayActorError):
        reason = " ".join(str(error or "").split())
        return f"its process died: {reason[:300]}".removesuffix(": ")
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"


def _last_error(trial: Trial) -> Exception | None:
    """Tune's own getter reads the experiment's storage, where an error arrives only after it is told."""
    if trial.pickled_error_file is None or not Path(trial.pickled_error_file).is_file():
        return None
    with Path(trial.pickled_error_file).open("rb") as file:
        error: Exception = cloudpickle.load(file)  # this process wrote it just now
    return error
