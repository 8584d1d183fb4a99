"""A world whose best NFE follows the price smoothly: each further step is worth less than the one before it.

The clean prediction after n denoiser calls is an image of brightness q_p(n) = 1 - exp(-n / tau_p), with a
tau_p for each prompt; so at a price c of one NFE, with brightness as quality, it is best to stop once the
next step's gain q_p(n + 1) - q_p(n) is below c.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from actors.contracts import Conditioning, Denoised, Images
from actors.engine import EngineConfig
from learner import session
from learner.config import PPOSettings, PromptConfig, RunConfig
from learner.resources import ResourcesConfig
from rewards_service.arithmetic import RewardConfig
from tests.learner.toy import ToyBackbone, make_client, toy_config

STEPS = 12
TAUS = tuple(np.linspace(1.0, 5.0, 8).tolist())


def brightness(tau: float, calls: np.ndarray) -> np.ndarray:
    return 1.0 - np.exp(-calls / tau)


def best_nfe(tau: float, price: float) -> int:
    """Denoiser calls of the best episode, from 1 to all."""
    calls = np.arange(1, STEPS + 1)
    return int(calls[np.argmax(brightness(tau, calls) - price * calls)])


class SmoothBackbone(ToyBackbone):
    """Knows from the timestep how many calls were made, and from the prompt's length its tau."""

    feature_dim = 2
    text_dim = 3
    identity = "smooth"

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
        calls_B = STEPS - (timesteps_B.float() - 1.0) / (1000 // STEPS)  # DDIM's spacing, leading
        tau_B = torch.tensor(TAUS)[conditioning.pooled_BD[:, 0].long() - 1]
        clean_B = 1.0 - torch.exp(-calls_B / tau_B)
        clean_BCHW = clean_B[:, None, None, None].expand_as(latents_BCHW)
        scale, noise = alpha_B.sqrt()[:, None, None, None], (1 - alpha_B).sqrt()[:, None, None, None]
        features_BF = torch.stack([clean_B, torch.ones_like(clean_B)], dim=1)
        return Denoised((latents_BCHW - scale * clean_BCHW) / noise, features_BF, None)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        grey_B = (255.0 * latents_BCHW.mean(dim=(1, 2, 3))).round().clamp(0, 255).numpy().astype(np.uint8)
        return np.broadcast_to(grey_B[:, None, None, None], (len(grey_B), 8, 8, 3)).copy()

    preview = decode


@contextlib.contextmanager
def smooth_world(config: RunConfig) -> Iterator[session.World]:
    yield session.World(SmoothBackbone, make_client, "smooth")


def smooth_config(runs_dir: Path, name: str, reward: RewardConfig, iterations: int) -> RunConfig:
    """Quality is the brightness itself: scales and sigma are 1, so that prices are gains of brightness."""
    prompts = runs_dir / "lengths.txt"
    prompts.write_text("".join("x" * length + "\n" for length in range(1, len(TAUS) + 1)))
    ones = dict.fromkeys(reward.scales, 1.0)
    return toy_config(
        runs_dir,
        name=name,
        engine=EngineConfig(
            solver="ddim", num_steps=STEPS, warmup_steps=0, actions=("continue", "stop"), max_nfe=STEPS
        ),
        reward=replace(
            reward,
            profile="no_quality",
            beta={"image_reward": 1.0},
            scales=ones,
            sigma=1.0,
            gamma_d=1.0,
            score_every=64,
        ),
        ppo=PPOSettings(
            iterations=iterations,
            episodes_per_iteration=64,
            minibatch_size=128,
            num_epochs=4,
            hidden=(32,),
            lr=5e-3,
            entropy_start=0.01,
            continue_logit=2.0,
        ),
        prompts=PromptConfig(source=str(prompts), seeds=4),
        resources=ResourcesConfig(num_env_runners=0, slots=64, groups=1),  # one call a step for all
    )
