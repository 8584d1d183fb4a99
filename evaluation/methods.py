"""What is compared: a policy or a baseline, as something that travels to a process and opens there.

Always true here: a method is plain data; opened on a bench it is an engine, an observer, a decider and a
scorer for `rollout`, and nothing else tells a policy from a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from actors.backbones.config import BackboneConfig
from actors.contracts import Decider, QualityScorer
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyDecider, load_policy
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

    folder: str
    engine: EngineConfig
    observation: ObservationConfig
    sizes: ObservationSizes
    backbone: BackboneConfig
    """As it was trained with; where and in which type it runs is the evaluation's to say."""
    backbone_identity: str
    model_version: str | None
    greedy: bool
    seed: int

    name = "policy"

    def open(self, bench: Bench) -> OpenMethod:
        """The policy on this bench; UserError if it was trained on another backbone."""
        if bench.backbone.identity != self.backbone_identity:
            raise UserError(
                f"policy={self.folder}: trained on backbone {self.backbone_identity},"
                f" this one is {bench.backbone.identity}"
            )
        network, _ = load_policy(self.folder)
        engine = Engine(bench.backbone, self.engine)
        observer = Observer(self.observation, self.sizes, engine.action_names)
        if (network.policy_dim, network.num_actions) != (observer.policy_dim, engine.num_actions):
            raise UserError(
                f"policy={self.folder}: takes {network.policy_dim} inputs and {network.num_actions} actions,"
                f" its own options make {observer.policy_dim} and {engine.num_actions}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        decider = PolicyDecider(network, observer, self.greedy, generator)
        return OpenMethod(engine, observer, decider, bench.scorer(*observer.look_outputs))


def read_policy(folder: Path, *, greedy: bool, seed: int) -> PolicyMethod:
    """The policy that training left in a folder; UserError if it does not say how it was trained."""
    _, metadata = load_policy(folder)
    try:
        return PolicyMethod(
            folder=str(folder),
            engine=EngineConfig(**_options(EngineConfig, metadata["engine"])),
            observation=ObservationConfig(**_options(ObservationConfig, metadata["observation"])),
            sizes=ObservationSizes(**_options(ObservationSizes, metadata["sizes"])),
            backbone=_backbone(metadata),
            backbone_identity=metadata["backbone"],
            model_version=metadata.get("model_version"),
            greedy=greedy,
            seed=seed,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"policy={folder}: its metadata does not say how it was trained ({error})") from error


def _backbone(metadata: dict[str, Any]) -> BackboneConfig:
    """The stored backbone options; policies of earlier versions know its name only."""
    if "backbone_config" in metadata:
        return BackboneConfig.from_metadata(metadata["backbone_config"])
    return BackboneConfig(name=metadata["backbone_name"])


def _options(kind: type, stored: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON kept them, ready for their dataclass; TypeError if it has no such option."""
    if unknown := set(stored) - {field.name for field in fields(kind)}:
        raise TypeError(f"unknown option {min(unknown)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
