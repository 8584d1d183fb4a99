"""What the tests of serving paint with: small policies on the embedded world's own backbone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyNetwork, save_policy
from actors.rollout import rollout
from cluster.serving.models import ModelSource, OpenedModel, open_model
from cluster.serving.painter import png
from learner import registry
from tune_configs.loading import compose

ENGINE = EngineConfig(
    num_steps=5,
    warmup_steps=1,
    guidance_scale=3.0,
    actions=("continue", "stop", "look", "restart", "leap-2"),
    max_nfe=10,
    max_attempts=2,
)
PROMPTS = ("a red circle", "two blue squares", "a green star left of a red square", "a large yellow triangle")
CERTIFICATE = {
    "stop_threshold": 0.02,
    "delta": 0.05,
    "confidence": 0.95,
    "quality_never_stopping": 0.8,
    "score": "held-out score",
}


def shapes_policy(folder: Path, seed: int = 0, **metadata: object) -> Path:
    """An untrained policy for the embedded world, saved as training saves it; seeds decide differently."""
    identity, sizes = _backbone()
    observer = Observer(ObservationConfig(), sizes, ENGINE.actions)
    torch.manual_seed(seed)
    network = PolicyNetwork(observer.policy_dim, observer.num_actions, hidden=(16,))
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.mul_(30)
    stored: dict[str, Any] = {
        "backbone": identity,
        "backbone_config": asdict(BackboneConfig()),
        "engine": {**ENGINE.__dict__, "actions": list(ENGINE.actions)},
        "observation": ObservationConfig().__dict__,
        "sizes": sizes.__dict__,
        "model_version": "1",
        **metadata,
    }
    save_policy(folder, network, stored)
    return folder


@functools.cache
def _backbone() -> tuple[str, ObservationSizes]:
    backbone = load_backbone(BackboneConfig())
    return backbone.identity, ObservationSizes(backbone.feature_dim, backbone.text_dim)


def saved_run(runs_dir: Path, name: str, seed: int = 0, **metadata: object) -> Path:
    """A run that looks trained."""
    run_dir = runs_dir / name
    shapes_policy(run_dir / "policy", seed, **metadata)
    (run_dir / "config.yaml").write_text(compose([f"name={name}"]).to_yaml(), encoding="utf-8")
    return run_dir


def registered(runs_dir: Path, policy_dir: Path, *, overrides: Sequence[str] = ()) -> str:
    """The policy as a new champion of `addiffusion-shapes`, its run's options; gives the version."""
    uri = registry.tracking_uri(runs_dir)
    return registry.register(
        policy_dir,
        name="addiffusion-shapes",
        uri=uri,
        run_id=registry.new_run(uri, "test", "test", {}),
        metrics={},
        step=0,
        config=yaml.safe_load(compose(overrides).to_yaml()),
        tags={},
        alias="champion",
    )


class Alone:
    """Paints one image at a time, without Ray or a loop: what every served image is compared with."""

    _other: OpenedModel | None = None
    """Whose backbone is used again."""

    def __init__(self, policy_dir: Path) -> None:
        source = ModelSource(str(policy_dir), policy_dir.parent)
        self.model = open_model(source, source.version(), beside=Alone._other)
        Alone._other = self.model

    def png(self, prompt: str, seed: int, *, max_nfe: int | None = None, careful: bool = False) -> bytes:
        painting = self.model.painting
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            (result,) = rollout(
                painting.engine,
                self.model.careful if careful else self.model.decider,
                painting.observer,
                [EpisodeRequest(prompt, seed, max_nfe=max_nfe)],
                slots=1,
                scorer=painting.scorer,
            )
            return png(painting.engine.backbone.decode(result.latents_CHW[None])[0])
        finally:
            torch.set_num_threads(threads)
