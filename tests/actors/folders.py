"""Pipelines with small random weights, one of each architecture, as diffusers saves them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
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

TEXT_DIM = 32
TOKENS = 20
POOLED_DIM = 24


def save_stable_diffusion(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(folder / "made")
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(_clip(tokenizer)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**_unet(), sample_size=8, cross_attention_dim=TEXT_DIM),
        scheduler=_ddim("v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_stable_diffusion_xl(folder: Path, **options: Any) -> None:
    """options: of the pipeline, as force_zeros_for_empty_prompt."""
    torch.manual_seed(1)
    tokenizer = _clip_tokenizer(folder / "made")
    text_2 = _clip(tokenizer, hidden_size=16, projection_dim=POOLED_DIM)
    StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(_clip(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            **_unet(),
            sample_size=8,
            cross_attention_dim=TEXT_DIM + 16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=POOLED_DIM + 6 * 4,
            use_linear_projection=True,
        ),
        scheduler=_ddim("epsilon"),
        add_watermarker=False,
        **options,
    ).save_pretrained(folder)


def save_flux(folder: Path, *, dev: bool) -> None:
    """dev: takes guidance and shifts its timesteps with the resolution; else as schnell."""
    torch.manual_seed(2)
    tokenizer = _clip_tokenizer(folder / "made")
    tokenizer_2 = _t5_tokenizer()
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=20, d_kv=4, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    FluxPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.36,
            shift_factor=0.12,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(_clip(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=20,
            pooled_projection_dim=TEXT_DIM,
            guidance_embeds=dev,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
    ).save_pretrained(folder)


def tiny_vae(latent_channels: int = 4) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=latent_channels,
        scaling_factor=1.3,
    )


def _unet() -> dict[str, Any]:
    return {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }


def _ddim(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _clip(tokenizer: CLIPTokenizer, hidden_size: int = TEXT_DIM, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Every letter is a token."""
    folder.mkdir(parents=True)
    tokens = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def _t5_tokenizer() -> T5TokenizerFast:
    """Every word is a token: its first letter's, so that any word is known."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {
        letter: index for index, letter in enumerate(string.ascii_lowercase, 3)
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512)
