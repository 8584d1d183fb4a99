"""A Stable Diffusion folder with small random weights, made once a session."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from actors.backbones import StableDiffusionBackbone, load_backbone

torch.set_num_threads(1)

TEXT_DIM = 32
TOKENS = 20


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Every letter is a token."""
    tokens = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random_sd")
    tokenizer = _tokenizer(tmp_path_factory.mktemp("tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            scaling_factor=1.3,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(pipeline_folder: Path) -> StableDiffusionPipeline:
    """The reference: diffusers' own pipeline on the same folder."""
    loaded = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="session")
def backbone(pipeline_folder: Path) -> StableDiffusionBackbone:
    return load_backbone(str(pipeline_folder))
