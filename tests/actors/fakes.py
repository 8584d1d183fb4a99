"""Fakes of the engine's contracts: a denoiser that knows the answer, a scorer, deciders with a plan.

Always true here: deterministic functions of prompt and seed; nothing is loaded or trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from actors.contracts import Conditioning, Denoised, Images, PredictionType
from actors.engine import Episode


def sd_alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion's noise schedule."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return scheduler.alphas_cumprod.double()


class OracleBackbone:
    """Predicts exactly the noise (or velocity) that leads to one known image for each prompt.

    `attention_HW` is given to the first of three tokens; the second gets nothing, the third is no word.
    """

    latent_shape = (4, 16, 16)
    feature_dim = 6
    text_dim = 5
    classifier_free = True
    flow_shift = 1.0
    device = torch.device("cpu")
    identity = "oracle"

    def __init__(
        self,
        prediction_type: PredictionType = "epsilon",
        attention_HW: torch.Tensor | None = None,
        poison: Callable[[torch.Tensor], torch.Tensor] = lambda prediction: prediction,
    ) -> None:
        self.prediction_type: PredictionType = prediction_type
        self.alphas_cumprod = sd_alphas_cumprod()
        self.attention_HW = attention_HW if attention_HW is not None else torch.ones(8, 8)
        self.poison = poison
        self.calls: list[list[float]] = []
        self.seen: list[torch.Tensor] = []

    def truth(self, prompt: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
        return torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed))

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        truths = torch.stack([self.truth(prompt) for prompt in prompts])
        pooled = truths.flatten(1)[:, : self.text_dim]
        words = torch.tensor([[True, True, False]]).expand(len(prompts), 3)
        text = pooled[:, None]
        return Conditioning(text, torch.zeros_like(text), pooled, words, extras={"truth": truths})

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        self.calls.append(timesteps_B.tolist())
        self.seen.append(latents_BCHW.clone())
        signal = self.alphas_cumprod[timesteps_B.round().long()].view(-1, 1, 1, 1)
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        noise = (latents_BCHW.double() - alpha * conditioning.extras["truth"]) / sigma
        prediction = noise
        if self.prediction_type == "v_prediction":
            prediction = alpha * noise - sigma * conditioning.extras["truth"]
        maps = None
        if attention:
            first = self.attention_HW.expand(len(latents_BCHW), 1, -1, -1)
            maps = torch.cat([first, torch.zeros_like(first), torch.zeros_like(first)], dim=1)
        features = latents_BCHW.flatten(1)[:, : self.feature_dim]
        return Denoised(self.poison(prediction.float()), features, maps)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        images: Images = (latents_BCHW[:, :3].sigmoid() * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return images

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        return self.decode(latents_BCHW)[:, ::2, ::2]


def brightness_scorer(images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """A QualityScorer: the mean brightness, and unit embeddings made of the image's corner."""
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255.0
    corner = pixels[:, :8] + 0.1
    unit = corner / np.linalg.norm(corner, axis=1, keepdims=True)
    return {
        "image_reward": pixels.mean(axis=1),
        "clip_score": pixels[:, 0],
        "aesthetic": pixels[:, 1],
        "dino": unit,
        "clip_image": unit,
        "clip_text": unit[:, ::-1].copy(),
    }


class Scripted:
    """Takes the planned actions of each seed in turn, then the fallback while it is legal, then stops."""

    def __init__(
        self,
        action_names: Sequence[str],
        plans: Mapping[int, Sequence[str]] | Sequence[str] = (),
        then: str = "continue",
    ) -> None:
        self.index = {name: position for position, name in enumerate(action_names)}
        self.plans = plans
        self.then = then

    def __call__(
        self,
        episodes: Sequence[Episode],
        observations_BD: NDArray[np.float32],
        mask_BA: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        return np.array([self._choose(*row) for row in zip(episodes, mask_BA, strict=True)], dtype=np.int64)

    def _choose(self, episode: Episode, mask_A: NDArray[np.bool_]) -> int:
        plan = self.plans.get(episode.request.seed, ()) if isinstance(self.plans, Mapping) else self.plans
        taken = len(episode.decisions)
        if taken < len(plan):
            return self.index[plan[taken]]
        return self.index[self.then if mask_A[self.index[self.then]] else "stop"]


class SeededRandom:
    """Any legal action, drawn from the episode's own seed: independent of who shares the batch."""

    def __call__(
        self,
        episodes: Sequence[Episode],
        observations_BD: NDArray[np.float32],
        mask_BA: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        choices = [
            np.random.default_rng([episode.request.seed, len(episode.decisions)]).choice(np.flatnonzero(row))
            for episode, row in zip(episodes, mask_BA, strict=True)
        ]
        return np.array(choices, dtype=np.int64)
