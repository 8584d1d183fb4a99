"""Stable Diffusion XL (Podell et al. 2023): any folder or hub id that StableDiffusionXLPipeline loads.

Always true here: the weights are frozen; latents, predictions and features are float32 outside, whatever
the network computes in; every row of a batch is computed as if it were alone. The network is told that its
image was neither scaled nor cropped: original and target size are the resolution, the crop's corner is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline

from actors.backbones.config import BackboneConfig
from actors.backbones.decoding import Decoder
from actors.backbones.files import check_network
from actors.backbones.noise_schedule import variance_preserving
from actors.backbones.text import Columns, PromptCache, PromptTokenizer
from actors.backbones.unet import GuidedUNet
from actors.contracts import Conditioning, Denoised, Images

_SIZE_CONDITIONS = 6
"""Original size, the crop's corner, target size: two numbers each."""


class StableDiffusionXLBackbone:
    """A StableDiffusionXLPipeline as the engine sees it; implements `actors.contracts.Backbone`.

    Its conditioning has two extras: `time_ids`, the resolution, and `null_pooled`, the empty prompt's pooled
    embedding.
    """

    pipeline_class = StableDiffusionXLPipeline
    networks: Mapping[str, tuple[str, ...]] = {
        "unet": ("UNet2DConditionModel",),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    }
    identity_windows = 16
    pipeline_options: Mapping[str, Any] = {"add_watermarker": False}
    flow_shift = 1.0

    def __init__(
        self, pipeline: Any, config: BackboneConfig, identity: str, tiny_decoder: AutoencoderTiny | None
    ) -> None:
        unet, pixels = pipeline.unet, pipeline.vae_scale_factor
        self._text_encoders = [
            encoder.eval().requires_grad_(False)
            for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
        ]
        self.identity = identity
        self.device: torch.device = unet.device
        self.text_dim: int = pipeline.text_encoder_2.config.projection_dim
        added = _SIZE_CONDITIONS * (unet.config.addition_time_embed_dim or 0) + self.text_dim
        accepted = {
            "in_channels": unet.config.out_channels,
            "cross_attention_dim": sum(encoder.config.hidden_size for encoder in self._text_encoders),
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": added,
        }
        check_network("UNet", unet.config, accepted, identity)
        self.prediction_type, self.alphas_cumprod = variance_preserving(pipeline.scheduler, identity)
        size = unet.config.sample_size
        own = (size, size) if isinstance(size, int) else (size[0], size[1])
        height, width = config.latent_size(own, pixels)
        self.latent_shape: tuple[int, int, int] = (unet.config.in_channels, height, width)
        self._unet = GuidedUNet(unet, (height, width), compiled=config.compile)
        self.feature_dim = self._unet.feature_dim
        self.classifier_free = self._unet.guidance_dim is None
        resolution = (height * pixels, width * pixels)
        self._time_ids = torch.tensor(
            [[*resolution, 0, 0, *resolution]], dtype=unet.dtype, device=self.device
        )
        self._zero_null: bool = pipeline.config.force_zeros_for_empty_prompt
        vae = pipeline.vae
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae = copy.deepcopy(vae).to(
                torch.float32
            )  # overflows float16; the pipeline's own casts by itself
        self._decoder = Decoder(vae, pixels, tiny_decoder)
        self._tokenizers = [
            PromptTokenizer(pipeline.tokenizer, pipeline.tokenizer.model_max_length),
            PromptTokenizer(pipeline.tokenizer_2, pipeline.tokenizer_2.model_max_length, warns=False),
        ]
        self._prompts = PromptCache(self._encode)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Both encoders' token embeddings side by side, and the second one's pooled embedding.

        The empty prompt's are zeros where the pipeline was trained so (`force_zeros_for_empty_prompt`).
        """
        text_BLD, pooled_BD, mask_BL = self._prompts(prompts)
        extras = {"time_ids": self._time_ids.expand(len(prompts), -1)}
        null_BLD = None
        if self.classifier_free:
            null_BLD, extras["null_pooled"] = torch.zeros_like(text_BLD), torch.zeros_like(pooled_BD)
            if not self._zero_null:
                null_text_BLD, null_pooled_BD, _ = self._prompts([""])
                null_BLD = null_text_BLD.expand_as(text_BLD)
                extras["null_pooled"] = null_pooled_BD.expand_as(pooled_BD)
        return Conditioning(text_BLD, null_BLD, pooled_BD, mask_BL, extras)

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
        pooled, time_ids = conditioning.pooled_BD, conditioning.extras["time_ids"]
        if conditioning.null_BLD is not None:
            pooled = torch.cat([conditioning.extras["null_pooled"], pooled])
            time_ids = time_ids.repeat(2, 1)
        return self._unet(
            latents_BCHW,
            timesteps_B,
            conditioning,
            guidance_scale_B,
            added={"text_embeds": pooled, "time_ids": time_ids},
            attention=attention,
        )

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """Images at full size, uint8 B x H x W x 3."""
        return self._decoder.decode(latents_BCHW)

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """Images of at most 224 pixels a side."""
        return self._decoder.preview(latents_BCHW)

    def _encode(self, prompts: Sequence[str]) -> Columns:
        """Of each prompt: token embeddings, the pooled one, and which tokens are words."""
        tokens = [tokenize(prompts) for tokenize in self._tokenizers]
        encoded = [
            encoder(ids_BL.to(self.device), output_hidden_states=True)
            for encoder, (ids_BL, _) in zip(self._text_encoders, tokens, strict=True)
        ]
        text_BLD = torch.cat([output.hidden_states[-2] for output in encoded], dim=-1)
        return text_BLD, encoded[1].text_embeds, tokens[0][1].to(self.device)
