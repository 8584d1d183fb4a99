"""What is compared: a policy or a baseline, as something that travels to a process and opens there.

Always true here: a method is plain data; opened on a bench it is an engine, an observer, a decider and a
scorer for `rollout`, and nothing else tells a policy from a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from actors.contracts import Decider, QualityScorer
from actors.engine import Engine, EngineConfig
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy_folder import TrainedPolicy, read_trained_policy
from evaluation.baselines import Baseline
from evaluation.bench import Bench


@dataclass(frozen=True)
class OpenMethod:
    """A method on a bench, ready for `rollout`."""

    engine: Engine
    observer: Observer
    decider: Decider
    scorer: QualityScorer | None


class Method(Protocol):
    """A policy or a baseline."""

    @property
    def name(self) -> str:
        """What it is called in rows, summaries and figures."""
        ...

    @property
    def engine(self) -> EngineConfig:
        """The engine it runs on."""
        ...

    def open(self, bench: Bench) -> OpenMethod:
        """Make everything it needs."""
        ...


@dataclass(frozen=True)
class BaselineMethod:
    """A fixed baseline. It observes next to nothing, so that its seconds are its own."""

    baseline: Baseline
    engine: EngineConfig

    @property
    def name(self) -> str:
        """The baseline's name."""
        return self.baseline.name

    def open(self, bench: Bench) -> OpenMethod:
        """Its rule on this bench; a look asks for the one score the rule needs."""
        engine = Engine(bench.backbone, self.engine)
        sizes = ObservationSizes(bench.backbone.feature_dim, bench.backbone.text_dim)
        observer = Observer(ObservationConfig("timestep", False), sizes, engine.action_names)
        scorer = bench.oracle if self.baseline.oracle else bench.scorer("image_reward")
        return OpenMethod(engine, observer, self.baseline.decider(engine.action_names), scorer)


@dataclass(frozen=True)
class PolicyMethod:
    """A trained policy in a folder, with the engine and the observation it was trained with."""

    trained: TrainedPolicy
    greedy: bool
    seed: int

    name = "policy"

    @property
    def engine(self) -> EngineConfig:
        """The engine it was trained with."""
        return self.trained.engine

    def open(self, bench: Bench) -> OpenMethod:
        """The policy on this bench; UserError if it was trained on another backbone."""
        engine, observer, network = self.trained.open(bench.backbone)
        generator = torch.Generator().manual_seed(self.seed)
        decider = self.trained.decider(network, observer, greedy=self.greedy, generator=generator)
        return OpenMethod(engine, observer, decider, bench.scorer(*observer.look_outputs))


def read_policy(folder: Path, *, greedy: bool, seed: int) -> PolicyMethod:
    """The policy that training left in a folder; UserError if it does not say how it was trained."""
    return PolicyMethod(read_trained_policy(folder), greedy, seed)
