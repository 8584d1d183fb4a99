"""Published architectures at full size with random weights, for measuring time and memory without a download.

Always true here: layer for layer the networks of the published configs, made on the device they run on; every
image is noise. The tokenizer knows letters only, but gives as many tokens as the published one; prompts cost
what they would.
"""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from actors.contracts import Images

CLIP_TOKENS = 77
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Architecture:
    """A published model. memory_gb: what a rollout with previews must fit into (in 10^9 bytes)."""

    build: Callable[[str, torch.dtype, int], Any]
    """Device, dtype and pixels a side in, a diffusers pipeline out."""
    resolution: int
    guidance_scale: float
    memory_gb: float


def stable_diffusion(device: str, dtype: torch.dtype, resolution: int) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 (Rombach et al. 2022): UNet 860M, VAE 84M, CLIP ViT-L/14 text encoder 123M."""
    tokenizer = letter_tokenizer(CLIP_TOKENS)
    with _made_on(device, dtype):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=CLIP_TOKENS,
                vocab_size=49408,
                projection_dim=768,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=resolution // 8,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        vae = AutoencoderKL(
            sample_size=resolution,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.18215,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


ARCHITECTURES = {"sd15": Architecture(stable_diffusion, resolution=512, guidance_scale=7.5, memory_gb=40.0)}


class RandomClip:
    """CLIP ViT-L/14's image tower (Radford et al. 2021) with random weights, as what `seed` needs scored.

    Texts are unit vectors drawn once a prompt: their encoder runs once a prompt and is not measured.
    """

    embedding_dim = 768

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
            projection_dim=self.embedding_dim,
        )
        with _made_on(device, dtype):
            self._tower = CLIPVisionModelWithProjection(config).eval()
        self._mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Unit embeddings of images and prompts, and their product as image_reward."""
        pixels = torch.from_numpy(images).to(self._mean.device).permute(0, 3, 1, 2).float() / 255.0
        pixels = torch.nn.functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
        embedded = self._tower(((pixels - self._mean) / self._std).to(self._tower.dtype)).image_embeds
        image_BD = torch.nn.functional.normalize(embedded.float(), dim=1).cpu().numpy()
        text_BD = np.stack([self._text(prompt) for prompt in prompts])
        return {"clip_image": image_BD, "clip_text": text_BD, "image_reward": (image_BD * text_BD).sum(1)}

    def _text(self, prompt: str) -> NDArray[np.float32]:
        drawn = np.random.default_rng(list(prompt.encode())).standard_normal(self.embedding_dim)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def letter_tokenizer(tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer to which every letter is a token; prompts are padded to `tokens` as ever."""
    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps(vocabulary), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=tokens)


@contextmanager
def _made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """New modules are made on the device in this dtype: never a copy in float32, never one on the CPU."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(default)
