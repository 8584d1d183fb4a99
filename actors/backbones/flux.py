"""Flux schnell and dev: any folder or hub id that diffusers' FluxPipeline loads.

Always true here: the weights are frozen; latents are C x H x W outside, 2 x 2 of them are packed into one
token inside; the network is asked once a row, without an empty prompt. dev was distilled with guidance and
takes the scale as an input, schnell ignores it. Prediction and features are float32 outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import AutoencoderTiny, FluxPipeline, FluxTransformer2DModel

from actors.backbones.config import BackboneConfig
from actors.backbones.decoding import Decoder
from actors.backbones.files import check_network
from actors.backbones.joint_attention import install_joint_attention
from actors.backbones.noise_schedule import flow_shift
from actors.backbones.step_cache import StepCache
from actors.backbones.text import Columns, PromptCache, PromptTokenizer
from actors.contracts import Conditioning, Denoised, Images, PredictionType
from actors.schedule import FLOW_TIMESTEPS

PATCH = 2
_SCHNELL_TOKENS, _DEV_TOKENS = 256, 512
"""T5 tokens of a prompt that each was trained with."""
_CACHED_PROMPTS = 64
"""A prompt's T5 embeddings take 4 MB."""


class FluxBackbone:
    """A FluxPipeline as the engine sees it; implements `actors.contracts.Backbone`.

    Features are the image tokens that leave the last double-stream block, averaged: the middle of the
    network, where image and text tokens have met but are not yet read out. On a step that `first_block`
    skips they stay those of the step before.
    """

    pipeline_class = FluxPipeline
    networks: Mapping[str, tuple[str, ...]] = {
        "transformer": ("FluxTransformer2DModel",),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    }
    identity_windows = 16
    pipeline_options: Mapping[str, Any] = {}
    prediction_type: PredictionType = "flow"
    classifier_free = False

    def __init__(
        self, pipeline: Any, config: BackboneConfig, identity: str, tiny_decoder: AutoencoderTiny | None
    ) -> None:
        self._transformer = pipeline.transformer.eval().requires_grad_(False)
        self._clip = pipeline.text_encoder.eval().requires_grad_(False)
        self._t5 = pipeline.text_encoder_2.eval().requires_grad_(False)
        self.identity = identity
        self.device: torch.device = self._transformer.device
        self.alphas_cumprod = torch.empty(0, dtype=torch.float64)
        self.text_dim: int = self._clip.config.hidden_size
        channels, network = pipeline.vae.config.latent_channels, self._transformer.config
        accepted = {
            "in_channels": channels * PATCH**2,
            "joint_attention_dim": self._t5.config.d_model,
            "pooled_projection_dim": self.text_dim,
        }
        check_network("transformer", network, accepted, identity)
        own = pipeline.default_sample_size
        height, width = config.latent_size((own, own), pipeline.vae_scale_factor, PATCH)
        self.latent_shape: tuple[int, int, int] = (channels, height, width)
        rows, columns = height // PATCH, width // PATCH
        self.flow_shift = flow_shift(pipeline.scheduler, rows * columns, identity)
        self._takes_guidance: bool = network.guidance_embeds
        self.feature_dim: int = self._transformer.inner_dim
        self._image_ids = _positions(rows, columns).to(self.device, self._transformer.dtype)
        self._recorder = install_joint_attention(self._transformer, (rows, columns))
        self._features_BF: torch.Tensor | None = None
        last_block = self._transformer.transformer_blocks[-1]
        last_block.register_forward_hook(self._keep_features, with_kwargs=True)
        self._cache = StepCache(self._transformer, config.cache) if config.cache else None
        if config.compile:
            self._transformer.compile()
        self._decoder = Decoder(pipeline.vae, pipeline.vae_scale_factor, tiny_decoder)
        self._tokenize = PromptTokenizer(pipeline.tokenizer_2, prompt_tokens(self._transformer))
        # CLIP's one vector sums up what it sees of the prompt; T5 reads on, so only T5's limit is a loss.
        self._tokenize_clip = PromptTokenizer(
            pipeline.tokenizer, pipeline.tokenizer.model_max_length, warns=False
        )
        self._prompts = PromptCache(self._encode, _CACHED_PROMPTS)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """T5's token embeddings and CLIP's pooled one; prompts seen lately are not encoded again."""
        text_BLD, pooled_BD, mask_BL = self._prompts(prompts)
        return Conditioning(text_BLD, None, pooled_BD, mask_BL)

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
        """The predicted flow, with features and joint attention.

        Timesteps are sigma * 1000. Raises UserError where a configured cache cannot serve the batch.
        """
        dtype, text_BLD = self._transformer.dtype, conditioning.text_BLD
        text_ids = torch.zeros(text_BLD.shape[1], 3, dtype=dtype, device=self.device)
        context: AbstractContextManager[Any] = nullcontext()
        if self._cache is not None:
            context = self._cache.step(timesteps_B, conditioning, attention=attention)
        with self._recorder.recording(attention), context:
            tokens_BTC = self._transformer(
                hidden_states=pack(latents_BCHW.to(dtype)),
                timestep=timesteps_B.to(dtype) / FLOW_TIMESTEPS,
                guidance=guidance_scale_B.float() if self._takes_guidance else None,
                pooled_projections=conditioning.pooled_BD,
                encoder_hidden_states=text_BLD,
                txt_ids=text_ids,
                img_ids=self._image_ids,
                return_dict=False,
            )[0]
        assert self._features_BF is not None
        maps_BLHW = None
        if attention:
            maps_BLHW = self._recorder.maps() * conditioning.token_mask_BL[:, :, None, None]
        flow_BCHW = unpack(tokens_BTC.float(), latents_BCHW.shape[2:])
        return Denoised(flow_BCHW, self._features_BF, maps_BLHW)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """Images at full size, uint8 B x H x W x 3."""
        return self._decoder.decode(latents_BCHW)

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """Images of at most 224 pixels a side."""
        return self._decoder.preview(latents_BCHW)

    def _encode(self, prompts: Sequence[str]) -> Columns:
        """Of each prompt: token embeddings, the pooled one, and which tokens are words."""
        ids_BL, words_BL = self._tokenize(prompts)
        clip_ids_BL, _ = self._tokenize_clip(prompts)
        text_BLD = self._t5(ids_BL.to(self.device)).last_hidden_state
        pooled_BD = self._clip(clip_ids_BL.to(self.device)).pooler_output
        return text_BLD, pooled_BD, words_BL.to(self.device)

    def _keep_features(
        self,
        block: torch.nn.Module,
        inputs: object,
        named_inputs: dict[str, Any],
        output: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        image_BQC = output[1]
        if image_BQC is not named_inputs["hidden_states"]:  # a cache hands its input through
            self._features_BF = image_BQC.float().mean(dim=1)


def prompt_tokens(transformer: FluxTransformer2DModel) -> int:
    """T5 tokens of a prompt that this transformer was trained with."""
    return _DEV_TOKENS if transformer.config.guidance_embeds else _SCHNELL_TOKENS


def pack(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """B x C x H x W as B x (H/2 * W/2) x 4C: patches of 2 x 2 are tokens, row by row."""
    patches = latents_BCHW.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens_BTC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The inverse of `pack`; size: H and W of the latents."""
    grid = tokens_BTC.unflatten(1, (size[0] // PATCH, size[1] // PATCH)).unflatten(3, (-1, PATCH, PATCH))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _positions(rows: int, columns: int) -> torch.Tensor:
    """T x 3: each image token's row and column for the rotary embedding; the first number is 0."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
