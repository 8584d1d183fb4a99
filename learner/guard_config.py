"""What watches over a run: guards, held-out evaluations, and what is shown while it goes on.

Always true: a config that exists is usable; every impossible value was refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from rewards_service.contracts import METRICS

Reaction = Literal["ignore", "warn", "stop"]
"""Of a guard: `warn` writes an event, `stop` writes it and ends the run."""
Keep = Literal["last", "best"]


@dataclass(frozen=True)
class CollapseGuard:
    """The policy does one thing only: all signs together, for `patience` iterations in a row.

    share: of one action among the decisions, above it; spread: standard deviation of NFE as a share of its
    mean, below it; entropy: mean entropy of a decision in nats, below it.
    """

    action: Reaction = "stop"
    patience: int = 10
    share: float = 0.97
    spread: float = 0.01
    entropy: float = 0.25

    def __post_init__(self) -> None:
        _check_reaction(self.action)
        _check_positive("patience", self.patience)
        _check_positive("spread", self.spread)
        _check_positive("entropy", self.entropy)
        if not 0 < self.share < 1:
            raise ValueError(f"share: {self.share}; accepted: above 0 and below 1")


@dataclass(frozen=True)
class LostEpisodesGuard:
    """Iterations come back with too few episodes for longer than `patience_s`."""

    action: Reaction = "stop"
    patience_s: float = 300.0

    def __post_init__(self) -> None:
        _check_reaction(self.action)
        _check_positive("patience_s", self.patience_s)


@dataclass(frozen=True)
class HackingGuard:
    """The training return rises while held-out quality falls; `learner.hacking` has the test.

    confidence: one-sided, that the fall of held-out quality is none of chance.
    """

    action: Reaction = "warn"
    confidence: float = 0.99

    def __post_init__(self) -> None:
        _check_reaction(self.action)
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: {self.confidence}; accepted: from 0.5 to below 1")


@dataclass(frozen=True)
class GuardsConfig:
    """The guards of a run. A number that is not finite always ends it, so there is no option for that.

    runners_patience_s: how long all env runners may be gone before the run fails.
    """

    collapse: CollapseGuard = field(default_factory=CollapseGuard)
    lost_episodes: LostEpisodesGuard = field(default_factory=LostEpisodesGuard)
    hacking: HackingGuard = field(default_factory=HackingGuard)
    runners_patience_s: float = 180.0

    def __post_init__(self) -> None:
        _check_positive("runners_patience_s", self.runners_patience_s)


@dataclass(frozen=True)
class WatchConfig:
    """The policy without chance (its best action) on prompts that are never trained on.

    every: iterations between two evaluations, 0 makes none; prompts: how many, each with one seed; split: of
    the embedded world; share: of a prompt file's prompts, at most so many are held out; score: the raw score
    that is their quality; keep: which policy is registered, the last one or the one with the best held-out
    utility.
    """

    every: int = 10
    prompts: int = 32
    split: str = "validation"
    share: float = 0.1
    score: str = "image_reward"
    keep: Keep = "last"

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every: {self.every}; accepted: 0 or more")
        if self.prompts < 2:
            raise ValueError(f"prompts: {self.prompts}; accepted: 2 or more")
        if not 0 < self.share <= 0.5:
            raise ValueError(f"share: {self.share}; accepted: above 0, at most 0.5")
        if self.score not in METRICS.values():
            raise ValueError(f"score: {self.score!r}; accepted: {', '.join(METRICS.values())}")
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep: {self.keep!r}; accepted: {', '.join(get_args(Keep))}")
        if self.keep == "best" and self.every == 0:
            raise ValueError("keep: 'best'; accepted: last, as watch.every=0 compares nothing")


@dataclass(frozen=True)
class ProgressConfig:
    """What is shown of a run besides its live line.

    tensorboard: write curves for TensorBoard; pictures: held-out images in one grid, 0 makes none;
    pictures_every: iterations between two grids, each from the held-out evaluation that comes next.
    """

    tensorboard: bool = True
    pictures: int = 8
    pictures_every: int = 20

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures: {self.pictures}; accepted: 0 or more")
        _check_positive("pictures_every", self.pictures_every)


def _check_reaction(action: str) -> None:
    if action not in get_args(Reaction):
        raise ValueError(f"action: {action!r}; accepted: {', '.join(get_args(Reaction))}")


def _check_positive(option: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{option}: {value}; accepted: above 0")
