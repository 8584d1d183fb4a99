"""A world small enough to think through: half of all noises lead to a good image, the others to a bad one.

The sign of the mean of the latents is the image: x0 is that sign everywhere, and the denoiser's exact
noise prediction keeps it along every deterministic solver. A white preview is good (image reward 1), a
black one bad (0). So: stop at once on a good seed, restart on a bad one; anything else wastes NFE.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from actors.contracts import Conditioning, Denoised, Images, PredictionType
from actors.engine import EngineConfig
from learner import session
from learner.config import CheckpointConfig, PPOSettings, PromptConfig, RegistryConfig, RunConfig
from learner.guard_config import WatchConfig
from learner.resources import ResourcesConfig
from rewards_service.arithmetic import RewardConfig
from rewards_service.contracts import Pending, Scores
from rewards_service.local import LocalClient


class ToyBackbone:
    """`Backbone` with a closed form; its features are the sign of the image and a constant."""

    latent_shape = (1, 2, 2)
    prediction_type: PredictionType = "epsilon"
    alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    feature_dim = 2
    text_dim = 3
    classifier_free = True
    flow_shift = 1.0
    device = torch.device("cpu")
    identity = "toy"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        size = len(prompts)
        return Conditioning(
            text_BLD=torch.zeros(size, 2, 3),
            null_BLD=torch.zeros(size, 2, 3),
            pooled_BD=torch.tensor([[float(len(prompt)), 0.0, 1.0] for prompt in prompts]),
            token_mask_BL=torch.ones(size, 2, dtype=torch.bool),
        )

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        alpha_B = self.alphas_cumprod[timesteps_B.round().long()].float()
        sign_B = torch.where(latents_BCHW.mean(dim=(1, 2, 3)) > 0, 1.0, -1.0)
        clean_BCHW = sign_B[:, None, None, None].expand_as(latents_BCHW)
        scale, noise = alpha_B.sqrt()[:, None, None, None], (1 - alpha_B).sqrt()[:, None, None, None]
        features_BF = torch.stack([sign_B, torch.ones_like(sign_B)], dim=1)
        return Denoised((latents_BCHW - scale * clean_BCHW) / noise, features_BF, None)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        means_B = latents_BCHW.mean(dim=(1, 2, 3)).numpy()
        white_B = np.where(means_B > 0, 255, 0).astype(np.uint8)
        return np.broadcast_to(white_B[:, None, None, None], (len(white_B), 8, 8, 3)).copy()

    preview = decode


class ToyScorer:
    """All scores of the embedded world, from the brightness of the image."""

    name = "toy"
    outputs: tuple[str, ...] = ("clip_score", "aesthetic", "image_reward", "clip_image", "clip_text", "dino")

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        bright_N = images.reshape(len(images), -1).mean(axis=1).astype(np.float32) / 255.0
        angle_N = bright_N * np.pi / 2
        embedding_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
        return {
            "clip_score": bright_N,
            "aesthetic": bright_N,
            "image_reward": bright_N,
            "clip_image": embedding_ND,
            "clip_text": embedding_ND,
            "dino": embedding_ND,
        }


def make_client() -> LocalClient:
    return LocalClient([ToyScorer()])


@contextlib.contextmanager
def toy_world(config: RunConfig) -> Iterator[session.World]:
    yield session.World(ToyBackbone, make_client, "toy")


class Saboteur:
    """A client that ends its process after so many calls, unless the marker says that one did before."""

    def __init__(self, marker: Path, after: int) -> None:
        self.marker, self.after, self.calls, self.client = marker, after, 0, make_client()

    def submit(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Pending:
        self.calls += 1
        if self.calls > self.after and not self.marker.exists():
            self.marker.touch()
            os._exit(1)
        return self.client.submit(images, prompts, outputs)

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        return self.client.score(images, prompts, outputs)


def toy_config(runs_dir: Path, **changes: object) -> RunConfig:
    prompts = runs_dir / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("".join(f"prompt {'x' * index}\n" for index in range(1, 9)))
    options: dict[str, object] = {
        "name": "toy",
        "runs_dir": str(runs_dir),
        "engine": EngineConfig(
            solver="ddim",
            num_steps=5,
            warmup_steps=0,
            actions=("continue", "stop", "look", "restart"),
            max_nfe=12,
            max_attempts=4,
        ),
        "reward": RewardConfig(c_nfe=0.02),
        "ppo": PPOSettings(iterations=2, episodes_per_iteration=16, minibatch_size=64, hidden=(32,)),
        "prompts": PromptConfig(source=str(prompts), limit=8, seeds=4),
        "resources": ResourcesConfig(num_env_runners=0, slots=8, groups=2),
        "checkpoints": CheckpointConfig(every=1, keep=2),
        "registry": RegistryConfig(enabled=False),
        "watch": WatchConfig(every=0),
    }
    return RunConfig(**(options | changes))  # type: ignore[arg-type]
