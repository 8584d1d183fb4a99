"""A backbone whose denoiser calls somebody else has made already.

Always true here: the engine counts steps, keeps budgets and decides as ever, on the features it is given; its
latents mean nothing, the images are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from actors.contracts import Conditioning, Denoised, Images, PredictionType


class ReplayedBackbone:
    """A diffusers pipeline's steps as the engine sees them; implements `actors.contracts.Backbone`.

    Before the engine begins, pooled_BD is set to the prompts' pooled embeddings [B, text_dim]; before it
    denoises, features_BF to the mid-block features of the rows that it is going to denoise.
    """

    classifier_free = True
    flow_shift = 1.0
    latent_shape = (1, 1, 1)
    device = torch.device("cpu")

    def __init__(self, pipeline: Any, identity: str) -> None:
        self.prediction_type: PredictionType = pipeline.scheduler.config.prediction_type
        self.alphas_cumprod: torch.Tensor = pipeline.scheduler.alphas_cumprod.double()
        self.feature_dim: int = pipeline.unet.config.block_out_channels[-1]
        self.text_dim: int = pipeline.text_encoder.config.hidden_size
        self.identity = identity
        self.pooled_BD = torch.zeros(0, self.text_dim)
        self.features_BF = torch.zeros(0, self.feature_dim)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The pooled embeddings, and nothing for a network to attend to."""
        nothing_BLD = torch.zeros(len(prompts), 1, 1)
        no_words_BL = torch.zeros(len(prompts), 1, dtype=torch.bool)
        return Conditioning(nothing_BLD, nothing_BLD, self.pooled_BD, no_words_BL)

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        """The features of the call that was made."""
        assert len(latents_BCHW) == len(self.features_BF), (len(latents_BCHW), len(self.features_BF))
        return Denoised(torch.zeros_like(latents_BCHW), self.features_BF.cpu(), None)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """There are no images here."""
        raise AssertionError("the pipeline decodes its own images, and nothing here looks")

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """There are no images here."""
        raise AssertionError("the pipeline decodes its own images, and nothing here looks")
