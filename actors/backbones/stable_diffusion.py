"""Stable Diffusion: any folder or hub id that diffusers' StableDiffusionPipeline loads.

Always true here: the weights are frozen; latents, predictions and features are float32 outside, whatever
the network computes in; every row of a batch is computed as if it were alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from actors.backbones.config import BackboneConfig
from actors.backbones.decoding import Decoder
from actors.backbones.files import check_network
from actors.backbones.noise_schedule import variance_preserving
from actors.backbones.text import Columns, PromptCache, PromptTokenizer
from actors.backbones.unet import GuidedUNet
from actors.contracts import Conditioning, Denoised, Images


class StableDiffusionBackbone:
    """A StableDiffusionPipeline as the engine sees it; implements `actors.contracts.Backbone`.

    A UNet that takes the guidance scale as an input (a Latent Consistency Model) is asked once a row.
    """

    pipeline_class = StableDiffusionPipeline
    networks: Mapping[str, tuple[str, ...]] = {
        "unet": ("UNet2DConditionModel",),
        "text_encoder": ("CLIPTextModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    }
    identity_windows = 1
    pipeline_options: Mapping[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    flow_shift = 1.0

    def __init__(
        self, pipeline: Any, config: BackboneConfig, identity: str, tiny_decoder: AutoencoderTiny | None
    ) -> None:
        unet = pipeline.unet
        self._text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self.identity = identity
        self.device: torch.device = unet.device
        self.text_dim: int = self._text_encoder.config.hidden_size
        accepted = {
            "in_channels": unet.config.out_channels,
            "cross_attention_dim": self.text_dim,
            "addition_embed_type": None,
        }
        check_network("UNet", unet.config, accepted, identity)
        self.prediction_type, self.alphas_cumprod = variance_preserving(pipeline.scheduler, identity)
        size = unet.config.sample_size
        own = (size, size) if isinstance(size, int) else (size[0], size[1])
        height, width = config.latent_size(own, pipeline.vae_scale_factor)
        self.latent_shape: tuple[int, int, int] = (unet.config.in_channels, height, width)
        self._unet = GuidedUNet(unet, (height, width), compiled=config.compile)
        self.feature_dim = self._unet.feature_dim
        self.classifier_free = self._unet.guidance_dim is None
        self._decoder = Decoder(pipeline.vae, pipeline.vae_scale_factor, tiny_decoder)
        self._tokenize = PromptTokenizer(pipeline.tokenizer, pipeline.tokenizer.model_max_length)
        self._prompts = PromptCache(self._encode)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Token embeddings, and the empty prompt's as null; prompts seen lately are not encoded again."""
        text_BLD, pooled_BD, mask_BL = self._prompts([*prompts, ""])
        null_BLD = text_BLD[-1].expand_as(text_BLD[:-1]) if self.classifier_free else None
        return Conditioning(text_BLD[:-1], null_BLD, pooled_BD[:-1], mask_BL[:-1])

    @torch.inference_mode()
    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        """The guided prediction, with mid-block features and attention of the conditional rows."""
        return self._unet(latents_BCHW, timesteps_B, conditioning, guidance_scale_B, attention=attention)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """Images at full size, uint8 B x H x W x 3."""
        return self._decoder.decode(latents_BCHW)

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """Images of at most 224 pixels a side."""
        return self._decoder.preview(latents_BCHW)

    def _encode(self, prompts: Sequence[str]) -> Columns:
        """Of each prompt: token embeddings, the pooled one, and which tokens are words."""
        ids_BL, words_BL = self._tokenize(prompts)
        encoded = self._text_encoder(ids_BL.to(self.device))
        return encoded.last_hidden_state, encoded.pooler_output, words_BL.to(self.device)
