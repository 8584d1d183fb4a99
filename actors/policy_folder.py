"""A policy's folder as training left it: the network, and the engine and observation it was trained with.

Always true here: plain data that travels between processes, the weights are read when a policy is opened; a
policy is never opened on a backbone that it does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from actors.backbones.config import BackboneConfig
from actors.contracts import Backbone
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyNetwork, load_policy


@dataclass(frozen=True)
class TrainedPolicy:
    """What must be known to act with the policy in `folder`."""

    folder: str
    engine: EngineConfig
    observation: ObservationConfig
    sizes: ObservationSizes
    backbone: BackboneConfig
    """As it was trained with; where and in which type it runs is for its users to say."""
    backbone_identity: str
    model_version: str | None

    def open(self, backbone: Backbone, *, verify: bool = True) -> tuple[Engine, Observer, PolicyNetwork]:
        """Everything it needs to decide on this backbone.

        Raises UserError if it was trained on another one. With verify=False only the widths have to agree.
        """
        if verify:
            self.check_backbone(backbone.identity)
        for name in ("feature_dim", "text_dim"):
            trained, here = getattr(self.sizes, name), getattr(backbone, name)
            if trained != here:
                raise UserError(
                    f"policy={self.folder}: trained on a backbone with {name} {trained}, this one's is {here}"
                )
        network, _ = load_policy(self.folder)
        engine = Engine(backbone, self.engine)
        observer = Observer(self.observation, self.sizes, engine.action_names)
        if (network.policy_dim, network.num_actions) != (observer.policy_dim, engine.num_actions):
            raise UserError(
                f"policy={self.folder}: takes {network.policy_dim} inputs and {network.num_actions} actions,"
                f" its own options make {observer.policy_dim} and {engine.num_actions}"
            )
        return engine, observer, network

    def check_backbone(self, identity: str) -> None:
        """Raise UserError for a backbone with other weights; a folder's name does not matter."""
        if _digest(identity) != _digest(self.backbone_identity):
            raise UserError(
                f"policy={self.folder}: trained on backbone {self.backbone_identity}, this one is {identity}"
            )


def read_trained_policy(folder: str | Path) -> TrainedPolicy:
    """The policy that training left in a folder; UserError if it does not say how it was trained."""
    _, metadata = load_policy(folder)
    try:
        return TrainedPolicy(
            folder=str(folder),
            engine=EngineConfig(**_options(EngineConfig, metadata["engine"])),
            observation=ObservationConfig(**_options(ObservationConfig, metadata["observation"])),
            sizes=ObservationSizes(**_options(ObservationSizes, metadata["sizes"])),
            backbone=_backbone(metadata),
            backbone_identity=metadata["backbone"],
            model_version=metadata.get("model_version"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"policy={folder}: its metadata does not say how it was trained ({error})") from error


def _backbone(metadata: dict[str, Any]) -> BackboneConfig:
    """The stored backbone options; policies of earlier versions know its name only."""
    if "backbone_config" in metadata:
        return BackboneConfig.from_metadata(metadata["backbone_config"])
    return BackboneConfig(name=metadata["backbone_name"])


def _digest(identity: str) -> str:
    """What follows the name in `NAME@DIGEST...`: weights, and what was asked for besides."""
    return identity.partition("@")[2] or identity


def _options(kind: type, stored: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON kept them, ready for their dataclass; TypeError if it has no such option."""
    if unknown := set(stored) - {field.name for field in fields(kind)}:
        raise TypeError(f"unknown option {min(unknown)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
