"""A policy's folder as training left it: the network, and the engine and observation it was trained with.

Always true here: plain data that travels between processes, the weights are read when a policy is opened; a
policy is never opened on a backbone that it does not fit; a folder needs no file beyond itself, wherever it
is copied to.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from actors.backbones.config import BackboneConfig
from actors.backbones.rowwise import make_rowwise
from actors.contracts import Backbone
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.files import written_aside
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyDecider, PolicyNetwork, load_policy

REGION_HEAD_FILE = "region_head.safetensors"
"""The network that `engine.refine_region=learned` asks, beside the policy that was trained with it."""
CALIBRATION = "calibration"
"""Under this name a calibrated policy's metadata keeps its threshold and what was measured for it."""
STOP_THRESHOLD = "stop_threshold"


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
    stop_threshold: float | None = None
    """How probable `stop` must be for stopping early, where the policy was calibrated."""

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
        make_rowwise(network)
        engine = Engine(backbone, self.engine)
        observer = Observer(self.observation, self.sizes, engine.action_names)
        if (network.policy_dim, network.num_actions) != (observer.policy_dim, engine.num_actions):
            raise UserError(
                f"policy={self.folder}: takes {network.policy_dim} inputs and {network.num_actions} actions,"
                f" its own options make {observer.policy_dim} and {engine.num_actions}"
            )
        return engine, observer, network

    def decider(
        self,
        network: PolicyNetwork,
        observer: Observer,
        *,
        greedy: bool = True,
        seed: int = 0,
    ) -> PolicyDecider:
        """What acts with the opened network: by its calibrated threshold, where there is one."""
        return PolicyDecider(network, observer, greedy, seed, self.stop_threshold)

    def has_weights(self, identity: str) -> bool:
        """Whether a backbone of this identity has the weights that it was trained with."""
        return _digest(identity) == _digest(self.backbone_identity)

    def check_backbone(self, identity: str) -> None:
        """Raise UserError for a backbone with other weights; a folder's name does not matter."""
        if not self.has_weights(identity):
            raise UserError(
                f"policy={self.folder}: trained on backbone {self.backbone_identity}, this one is {identity}"
            )


def read_trained_policy(folder: str | Path) -> TrainedPolicy:
    """The policy that training left in a folder; UserError if it does not say how it was trained."""
    _, metadata = load_policy(folder)
    try:
        return TrainedPolicy(
            folder=str(folder),
            engine=_with_own_head(EngineConfig(**_options(EngineConfig, metadata["engine"])), Path(folder)),
            observation=ObservationConfig(**_options(ObservationConfig, metadata["observation"])),
            sizes=ObservationSizes(**_options(ObservationSizes, metadata["sizes"])),
            backbone=_backbone(metadata),
            backbone_identity=metadata["backbone"],
            model_version=metadata.get("model_version"),
            stop_threshold=_stop_threshold(metadata),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"policy={folder}: its metadata does not say how it was trained ({error})") from error


def pack_region_head(folder: Path, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a learned region head into a policy's folder; gives the engine's options, now with that file.

    engine: the options as metadata stores them. Without a learned region they are returned as they are.
    Raises UserError if the head's file is gone.
    """
    options = dict(engine)
    if options.get("refine_region") != "learned":
        return options
    source, target = Path(options["refine_head"]), folder / REGION_HEAD_FILE
    if not source.is_file():
        raise UserError(f"engine.refine_head is {str(source)!r}, which is no file; accepted: the head's file")
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        with written_aside(target) as aside:
            shutil.copyfile(source, aside)
    return options | {"refine_head": REGION_HEAD_FILE}


def _with_own_head(engine: EngineConfig, folder: Path) -> EngineConfig:
    """The head beside the policy, wherever the folder is; policies of earlier versions know a path only."""
    head = folder / REGION_HEAD_FILE
    return replace(engine, refine_head=str(head)) if engine.refine_head and head.is_file() else engine


def _stop_threshold(metadata: dict[str, Any]) -> float | None:
    if CALIBRATION not in metadata:
        return None
    threshold = metadata[CALIBRATION][STOP_THRESHOLD]
    if not isinstance(threshold, (int, float)) or not 0.0 <= threshold <= 1.0:
        raise TypeError(f"{CALIBRATION}.{STOP_THRESHOLD} is {threshold!r}")
    return float(threshold)


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
