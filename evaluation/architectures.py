"""Published architectures at full size with random weights, for measuring time and memory without a download.

Always true here: layer for layer the networks of the published configs, made on the device they run on; every
image is noise. The tokenizers know letters only, but give as many tokens as the published ones; prompts cost
what they would.
"""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from actors.backbones.config import Dtype
from actors.schedule import SolverName

CLIP_TOKENS = 77
T5_TOKENS = 512


@dataclass(frozen=True)
class Architecture:
    """A published model. memory_gb: what a rollout with previews must fit into (in 10^9 bytes)."""

    build: Callable[[str, torch.dtype, int], Any]
    """Device, dtype and pixels a side in, a diffusers pipeline out."""
    resolution: int
    guidance_scale: float
    memory_gb: float
    solver: SolverName = "dpmpp"
    num_steps: int = 20
    dtype: Dtype = "float16"
    """Of the weights on a GPU."""


def stable_diffusion(device: str, dtype: torch.dtype, resolution: int) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 (Rombach et al. 2022): UNet 860M, VAE 84M, CLIP ViT-L/14 text encoder 123M."""
    tokenizer = letter_tokenizer(CLIP_TOKENS)
    with made_on(device, dtype):
        unet = UNet2DConditionModel(
            sample_size=resolution // 8,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        text_encoder = CLIPTextModel(_clip_l(tokenizer))
        vae = _vae(resolution, latent_channels=4, scaling_factor=0.18215)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(device: str, dtype: torch.dtype, resolution: int) -> StableDiffusionXLPipeline:
    """SDXL (Podell et al. 2023): UNet 2.6B, VAE 84M, CLIP ViT-L/14 and OpenCLIP ViT-bigG/14 text encoders."""
    tokenizer = letter_tokenizer(CLIP_TOKENS)
    with made_on(device, dtype):
        unet = UNet2DConditionModel(
            sample_size=resolution // 8,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        text_encoder = CLIPTextModel(_clip_l(tokenizer))
        text_encoder_2 = CLIPTextModelWithProjection(
            _clip(
                tokenizer,
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
                hidden_act="gelu",
            )
        )
        vae = _vae(resolution, latent_channels=4, scaling_factor=0.13025, force_upcast=True)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=_ddim(),
        add_watermarker=False,
    )


def flux_schnell(device: str, dtype: torch.dtype, resolution: int) -> FluxPipeline:
    """FLUX.1 schnell (Black Forest Labs 2024): transformer 11.9B, T5-XXL 4.8B, CLIP ViT-L/14, VAE 84M."""
    return _flux(device, dtype, resolution, guidance_embeds=False)


def flux_dev(device: str, dtype: torch.dtype, resolution: int) -> FluxPipeline:
    """FLUX.1 dev: the same, with the guidance scale as an input."""
    return _flux(device, dtype, resolution, guidance_embeds=True)


def _flux(device: str, dtype: torch.dtype, resolution: int, *, guidance_embeds: bool) -> FluxPipeline:
    tokenizer = letter_tokenizer(CLIP_TOKENS)
    with made_on(device, dtype):
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=guidance_embeds,
        )
        text_encoder = CLIPTextModel(_clip_l(tokenizer))
        text_encoder_2 = T5EncoderModel(
            T5Config(
                d_model=4096,
                d_ff=10240,
                d_kv=64,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
                vocab_size=32128,
            )
        )
        vae = _vae(
            resolution,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    pipeline = FluxPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=letter_tokenizer_t5(T5_TOKENS),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipeline.default_sample_size = resolution // pipeline.vae_scale_factor
    return pipeline


ARCHITECTURES = {
    "sd15": Architecture(stable_diffusion, resolution=512, guidance_scale=7.5, memory_gb=40.0),
    "sdxl": Architecture(stable_diffusion_xl, resolution=1024, guidance_scale=5.0, memory_gb=80.0),
    "flux": Architecture(
        flux_schnell,
        resolution=1024,
        guidance_scale=1.0,
        memory_gb=80.0,
        solver="flow_euler",
        num_steps=4,
        dtype="bfloat16",
    ),
}


def _clip_l(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """CLIP ViT-L/14's text encoder (Radford et al. 2021)."""
    return _clip(
        tokenizer,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )


def _clip(tokenizer: CLIPTokenizer, **sizes: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        max_position_embeddings=CLIP_TOKENS,
        vocab_size=49408,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )


def _vae(resolution: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=resolution,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **options,
    )


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def letter_tokenizer(tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer to which every letter is a token; prompts are padded to `tokens` as ever."""
    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps(vocabulary), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=tokens)


def letter_tokenizer_t5(tokens: int) -> T5TokenizerFast:
    """A T5 tokenizer to which every word is unknown; prompts are padded to `tokens` as ever."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=tokens)


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """New modules are made on the device in this dtype: never a copy in float32, never one on the CPU."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(default)
