"""The trials of a sweep: each a training's whole configuration, composed and compared before anything starts.

Always true here: trials are judged alike, so what judges them, what an image costs and what is trained on
are the same in all; two variants that come to the same configuration are one trial with two labels; the
same files and overrides give the same trials, whatever has been run of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.actions import Guide, make_actions
from actors.errors import UserError
from learner.config import RunConfig
from learner.held_out import held_out_requests
from tune_configs.loading import compose
from tune_configs.sweep_config import Dimension, Scalar, SweepConfig
from tune_configs.sweep_files import Sweep

_ALIKE = ("watch", "prompts", "backbone", "rewards", "resources", "runs_dir")
"""Sections that all trials share."""
_NO_MATTER = ("name", "runs_dir", "registry", "progress", "checkpoints", "resources", "rewards")
_DIGITS = 10
_SEED = "seed="


@dataclass(frozen=True)
class TrialSpec:
    """One training of a sweep.

    id: its folder; labels: "PART/VARIANT", more than one where variants are the same training; overrides:
    what it is composed of; values: of the options that the sweep varies, as far as it has a space; key:
    differs whenever the configuration does, but for name and place.
    """

    id: str
    labels: tuple[str, ...]
    seed: int
    overrides: tuple[str, ...]
    values: dict[str, Scalar]
    key: str

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> TrialSpec:
        """From plain data, as JSON gives it back."""
        lists = {name: tuple(told[name]) for name in ("labels", "overrides")}
        return cls(**{**told, **lists, "values": dict(told["values"])})

    @property
    def of_any_seed(self) -> tuple[str, ...]:
        """Its overrides but for the seed: what it shares with the other trials of its variant."""
        return tuple(text for text in self.overrides if not text.startswith(_SEED))

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Place:
    """Where a sweep's trials are: a folder for each in `folder`; tracking_uri: MLflow's, of all of them;
    working_dir: what paths among their options are relative to.
    """

    folder: Path
    tracking_uri: str
    working_dir: Path = Path(".")


def run_config(overrides: Sequence[str]) -> RunConfig:
    """The training that overrides come to."""
    return compose(overrides).run


def trial_config(spec: TrialSpec, place: Place, values: Mapping[str, Scalar] | None = None) -> RunConfig:
    """The training of a trial; `values` in place of the ones it was planned with (pbt changes them).

    It registers nothing and stores no episodes: what it is for is in its policy and its measures. Trials of a
    population are checkpointed with every evaluation, as others take them over there.
    """
    config = run_config([*spec.overrides, *overrides_of(values or {})])
    every = config.watch.every if values else config.checkpoints.every
    checkpoints = replace(config.checkpoints, every=every, trajectories=False, trajectory_previews=False)
    return replace(
        config,
        name=spec.id,
        runs_dir=str(place.folder),
        registry=replace(config.registry, enabled=False, tracking_uri=place.tracking_uri),
        checkpoints=checkpoints,
        progress=replace(config.progress, tensorboard=False, pictures=0),
    )


def shared_overrides(sweep: Sweep, overrides: Sequence[str]) -> list[str]:
    """What a configuration with the options that all trials share is composed of: the first variant's, if
    variants are named, as all that a trial is made of may be its variant's own.
    """
    first = next(iter(sweep.parts.values()))
    return [*first.base, *overrides, *next(iter(first.variants.values()), ())]


class Planner:
    """Makes the trials of one sweep. `overrides` are given for every trial, before what makes a variant.

    Raises UserError for what no trial can be judged on.
    """

    def __init__(self, sweep: Sweep, overrides: Sequence[str]) -> None:
        self.sweep = sweep
        self._overrides = tuple(overrides)
        self.base = run_config(shared_overrides(sweep, overrides))
        if self.base.watch.split == "test":
            raise UserError(
                "watch.split=test: give another split; nothing is chosen by what results are told on"
            )
        if self.base.watch.keep != "last":
            raise UserError(f"watch.keep={self.base.watch.keep}: give last, which is what sweeps judge")
        self._check_watch()

    def trials(self) -> list[TrialSpec]:
        """All trials that can be told beforehand: of variants, of a grid, or drawn from a space.

        Seed by seed, so that there is a whole table early, and trials that ask a model the same questions
        follow one another: processes keep what it answered. Of a sweep whose searcher chooses, those are
        none. Raises UserError for a trial that cannot be, or that could not be compared with the others, also
        where a searcher or a population may come to it later.
        """
        found: dict[tuple[str, int], TrialSpec] = {}
        for part, config in self.sweep.parts.items():
            if config.drawn:
                self._check_ends(part, config)
            for variant, values, own in _variants(config, drawn=self.sweep.config.searcher == "none"):
                for seed in self.sweep.config.seeds:
                    spec = self.trial(part, variant, values, own, seed)
                    known = found.get((spec.key, seed))
                    labels = spec.labels if known is None else (*known.labels, *spec.labels)
                    found[spec.key, seed] = replace(known or spec, labels=labels)
        seeds = self.sweep.config.seeds
        return sorted(found.values(), key=lambda spec: seeds.index(spec.seed))

    def trial(
        self, part: str, variant: str, values: Mapping[str, Scalar], own: Sequence[str], seed: int
    ) -> TrialSpec:
        """One trial; `own` overrides make the variant and come last. Raises UserError, with its label."""
        label = f"{part}/{variant}"
        whole = (*self.sweep.parts[part].base, *self._overrides, *own, f"{_SEED}{seed}")
        try:
            config = run_config(whole)
            for action in make_actions(config.engine.actions):
                if isinstance(action, Guide):
                    action.check(config.engine)
        except UserError as error:
            raise UserError(f"{label}: {error}") from error
        judged, expected = _judged_by(config), _judged_by(self.base)
        changed = next((option for option in expected if judged[option] != expected[option]), None)
        if changed is not None:
            raise UserError(f"{label}: changes {changed}, which all trials share; give it for all of them")
        trial_id = f"{label.replace('/', '-')}-s{seed}"
        return TrialSpec(trial_id, (label,), seed, whole, dict(values), config_key(config.as_dict()))

    def _check_ends(self, part: str, config: SweepConfig) -> None:
        """Compose a trial at both ends of every range, and with every choice."""
        first = {name: dimension.ends[0] for name, dimension in config.space.items()}
        for name, dimension in config.space.items():
            for value in dimension.ends:
                values = first | {name: value}
                self.trial(part, _name({name: value}), values, overrides_of(values), config.seed)

    def _check_watch(self) -> None:
        """Early stopping judges on the held-out watch, so there has to be one, on enough prompts."""
        config, fewest = self.sweep.config, self.sweep.config.judge.fewest_prompts
        if config.scheduler == "none":
            return
        held_out = len(held_out_requests(self.base)) if self.base.watch.every else 0
        if held_out < fewest:
            raise UserError(
                f"sweep.scheduler={config.scheduler}: would judge on {held_out} held-out prompts; "
                f"give watch.every, and watch.prompts={fewest} (sweep.judge.fewest_prompts) or more"
            )
        every, interval = self.base.watch.every, config.perturbation_interval
        if config.scheduler == "pbt" and interval % every:
            raise UserError(
                f"sweep.perturbation_interval={interval}: give a multiple of watch.every={every}, as members "
                "exchange when they have been evaluated"
            )
        if config.scheduler == "asha" and config.grace >= self.base.ppo.iterations:
            raise UserError(
                f"sweep.grace={config.grace}: give less than ppo.iterations={self.base.ppo.iterations}, "
                "or no trial is ever stopped"
            )


def overrides_of(values: Mapping[str, Scalar]) -> list[str]:
    """Values as overrides, in full."""
    return [
        f"{option}={str(value).lower() if isinstance(value, bool) else value}"
        for option, value in values.items()
    ]


def config_key(config: Mapping[str, Any]) -> str:
    """Hex digits of all options that a training's outcome may depend on; `config` as plain data."""
    told = {name: value for name, value in config.items() if name not in _NO_MATTER}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def _judged_by(config: RunConfig) -> dict[str, Any]:
    told = config.as_dict()
    return {name: told[name] for name in _ALIKE} | {"engine.look_price": config.engine.look_price}


def _variants(config: SweepConfig, *, drawn: bool) -> Iterator[tuple[str, dict[str, Scalar], list[str]]]:
    """Name, values and own overrides of every variant."""
    for name, own in config.variants.items():
        yield name, {}, list(own)
    if not config.space:
        return
    if not config.drawn:
        for combined in itertools.product(*(dimension.grid for dimension in config.space.values())):
            values = dict(zip(config.space, combined, strict=True))
            yield _name(values), values, overrides_of(values)
    elif drawn:
        generator = np.random.default_rng([config.seed, 7])
        digits = len(str(config.trials - 1))
        for index in range(config.trials):
            values = {name: draw(dimension, generator) for name, dimension in config.space.items()}
            yield f"t{index:0{digits}d}", values, overrides_of(values)


def draw(dimension: Dimension, generator: np.random.Generator) -> Scalar:
    """One value of a dimension."""
    if dimension.uniform is not None:
        return float(generator.uniform(*dimension.uniform))
    if dimension.loguniform is not None:
        low, high = dimension.loguniform
        return float(math.exp(generator.uniform(math.log(low), math.log(high))))
    values = dimension.grid or dimension.choice
    return values[int(generator.integers(len(values)))]


def _name(values: Mapping[str, Scalar]) -> str:
    """A grid's point, as "lr=0.0003": the last part of each option is enough, but every digit is needed."""
    return ",".join(f"{option.rpartition('.')[2]}={_short(value)}" for option, value in values.items())


def _short(value: Scalar) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
