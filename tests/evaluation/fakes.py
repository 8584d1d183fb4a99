"""A tiny world for evaluations: a backbone, a scorer and a judge that cost nothing and are told apart.

The judge and the scorer agree only in part, as a learned reward and a real metric do.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from actors.backbones.config import BackboneConfig
from actors.contracts import Conditioning, Denoised, Images, PredictionType
from actors.engine import EngineConfig
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyNetwork, save_policy
from evaluation.bench import Bench
from rewards_service.contracts import Scores
from rewards_service.local import Answered

ENGINE = EngineConfig(
    num_steps=6,
    warmup_steps=2,
    actions=("continue", "stop", "look", "restart", "leap-2"),
    max_nfe=14,
    max_attempts=2,
)


@dataclass
class FakeBackbone:
    """Latents of 3 x 8 x 8 that drift to a pattern of their prompt; counts the rows it denoised."""

    latent_shape: tuple[int, int, int] = (3, 8, 8)
    prediction_type: PredictionType = "v_prediction"
    alphas_cumprod: torch.Tensor = field(
        default_factory=lambda: torch.linspace(0.9999, 0.01, 1000, dtype=torch.float64)
    )
    feature_dim: int = 3
    text_dim: int = 4
    classifier_free: bool = True
    flow_shift: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    identity: str = "fake-1"
    rows_denoised: int = 0

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
        pooled_BD = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in seeds])
        text_BLD = pooled_BD[:, None]
        mask_BL = torch.ones(len(prompts), 1, dtype=torch.bool)
        return Conditioning(text_BLD, torch.zeros_like(text_BLD), pooled_BD, mask_BL)

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        self.rows_denoised += len(latents_BCHW)
        drift_B = conditioning.pooled_BD.mean(1) + 0.01 * guidance_scale_B
        prediction_BCHW = torch.tanh(latents_BCHW.roll(1, 3)) + drift_B[:, None, None, None]
        return Denoised(prediction_BCHW, latents_BCHW.mean((2, 3)), None)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        pixels_BHWC = ((latents_BCHW.permute(0, 2, 3, 1) + 2) * 64).clamp(0, 255)
        images: Images = pixels_BHWC.numpy().astype(np.uint8)
        return images

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        return self.decode(latents_BCHW)


class FakeClient:
    """Scores the red channel; the judge, all three."""

    outputs = ("image_reward", "clip_score")

    def submit(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> Answered:
        return Answered(self.score(images, prompts, outputs))

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        value = images[..., 0].mean((1, 2)).astype(np.float32) / 255
        return {name: value for name in outputs or self.outputs}


def judge(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
    """The metric of the fake world."""
    score_B: NDArray[np.float32] = images.mean((1, 2, 3)).astype(np.float32) / 255
    return score_B


def open_fake_bench() -> Bench:
    """A bench that starts in no time; importable, so that it opens in other processes too."""
    return Bench(FakeBackbone(), FakeClient(), judge, "brightness", "fakebench")


def saved_policy(folder: Path, seed: int = 0, **metadata: object) -> Path:
    """An untrained policy for the fake backbone, saved as training saves it."""
    observation = ObservationConfig()
    sizes = ObservationSizes(FakeBackbone.feature_dim, FakeBackbone.text_dim)
    observer = Observer(observation, sizes, ENGINE.actions)
    torch.manual_seed(seed)
    network = PolicyNetwork(observer.policy_dim, observer.num_actions, hidden=(16,))
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.mul_(100)
    stored = {
        "backbone": FakeBackbone.identity,
        "backbone_config": asdict(BackboneConfig(name="fake")),
        "engine": {**ENGINE.__dict__, "actions": list(ENGINE.actions)},
        "observation": observation.__dict__,
        "sizes": sizes.__dict__,
        "model_version": "7",
        **metadata,
    }
    save_policy(folder, network, stored)
    return folder
