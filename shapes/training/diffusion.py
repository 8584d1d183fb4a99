"""The denoiser, a small Stable Diffusion UNet, trained with its text encoder.

v-prediction (Salimans & Ho, 2022), captions dropped for guidance, exponential moving average. Beside
the denoising loss a throw-away head reads from the UNet's upper 8 x 8 features which shape and colour
stands in each cell of the clean picture: representation alignment (REPA, Yu et al., 2024) with the
renderer's own object map in the place of a pretrained encoder's features.

Always true: the same steps in the same order whether a run was interrupted or not, and every saved
pipeline holds the averaged weights.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from shapes.captions import COLORS, SHAPES
from shapes.training.files import load_state, log_line, save_npz, save_state
from shapes.training.optimizer import MuonAdamW, set_learning_rate
from shapes.training.scenes import Scenes, load_scenes
from shapes.training.text import WIDTH, token_ids

STEPS = 2500
BATCH = 64
LEARNING_RATE = 1.5e-3
CHUNKS = range(0, 14)
DROPOUT = 0.1
ALIGNMENT = 0.1
"""Weight of the object-map loss."""
EMA_DECAY = 0.998
SAVE_EVERY = 250
MAP_CLASSES = (1 + len(SHAPES), 1 + len(COLORS))


def build_unet() -> UNet2DConditionModel:
    """The untrained denoiser (4.2M parameters): 32, 64 and 128 channels at 16, 8 and 4 pixels."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def learning_rate(step: int) -> float:
    """Warm-up, then a constant: the moving average does what a decay would, and a run can be made longer."""
    return LEARNING_RATE * min(1, (step + 1) / 100)


def encoded_latents(work: Path, vae: AutoencoderTiny, scenes: Scenes) -> torch.Tensor:
    """Scaled latents of all scenes, float16 [N, 4, 16, 16], cached in `work`."""
    path = work / "latents.npz"
    if not path.exists():
        parts = []
        with torch.no_grad():
            for part in torch.from_numpy(scenes.images).split(256):
                image = part.permute(0, 3, 1, 2).float() / 127.5 - 1
                parts.append((vae.encoder(image) * vae.config.scaling_factor).half())
        save_npz(path, latents=torch.cat(parts).numpy())
    with np.load(path, allow_pickle=False) as file:
        latents = torch.from_numpy(file["latents"])
    assert len(latents) == len(scenes), "latents.npz is of other scenes: delete it"
    return latents


def alignment_loss(
    logits_BCHW: torch.Tensor, shape_BHW: torch.Tensor, color_BHW: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of shape and colour in each cell, cells with objects counting three times."""
    weight = 1 + 2 * (shape_BHW > 0)
    shape, color = logits_BCHW.split(MAP_CLASSES, 1)
    loss = F.cross_entropy(shape, shape_BHW, reduction="none") + F.cross_entropy(
        color, color_BHW, reduction="none"
    )
    return (loss * weight).sum() / weight.sum()


class _Training:
    """Everything that has to be restored for a run to go on as if it had not stopped."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        torch.manual_seed(3)
        self.unet, self.text_encoder = build_unet(), text_encoder.train()
        self.head = nn.Sequential(nn.Conv2d(128, 64, 1), nn.SiLU(), nn.Conv2d(64, sum(MAP_CLASSES), 1))
        self.modules = nn.ModuleList([self.unet, self.text_encoder, self.head])
        first_and_last = [*self.unet.conv_in.parameters(), *self.unet.conv_out.parameters()]
        embeddings = [*text_encoder.text_model.embeddings.parameters(), *self.head.parameters()]
        self.optimizer = MuonAdamW(self.modules.parameters(), first_and_last + embeddings, LEARNING_RATE)
        self.averaged = [p.detach().clone() for p in self.modules.parameters()]
        self.generator = torch.Generator().manual_seed(3)
        self.step = 0
        self.captured: dict[str, torch.Tensor] = {}
        self.unet.up_blocks[0].register_forward_hook(self._capture)

    def _capture(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.captured["features"] = output

    def state(self) -> dict[str, object]:
        return {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def restore(self, path: Path) -> None:
        if state := load_state(path):
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.averaged = state["averaged"]
            self.generator.set_state(state["generator"])
            self.step = state["step"]

    def average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        current = [p.detach() for p in self.modules.parameters()]
        torch._foreach_lerp_(self.averaged, current, 1 - decay)

    def save_pipeline(self, folder: Path, vae: AutoencoderTiny, tokenizer: CLIPTokenizer) -> None:
        trained = [p.detach().clone() for p in self.modules.parameters()]
        parameters = list(self.modules.parameters())
        with torch.no_grad():
            for parameter, value in zip(parameters, self.averaged, strict=True):
                parameter.copy_(value)
        aside = folder.with_name(folder.name + ".part")
        shutil.rmtree(aside, ignore_errors=True)
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=tokenizer,
            unet=self.unet,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)


def train_denoiser(
    work: Path,
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    steps: int = STEPS,
) -> None:
    """Train (or go on training) up to `steps`; the pipeline stands in `work/pipeline`."""
    scenes = load_scenes(work / "scenes", CHUNKS)
    latents = encoded_latents(work, vae, scenes)
    ids = token_ids(tokenizer, [*scenes.captions, ""])
    shape_map = torch.from_numpy(scenes.shape_map).long()
    color_map = torch.from_numpy(scenes.color_map).long()
    alphas_cumprod = build_scheduler().alphas_cumprod
    run = _Training(text_encoder)
    run.restore(work / "denoiser.pt")
    order = _epoch_order(run.step // (len(latents) // BATCH), len(latents))
    losses: list[tuple[float, float]] = []
    for step in range(run.step, steps):
        set_learning_rate(run.optimizer, learning_rate(step))
        epoch, offset = divmod(step, len(latents) // BATCH)
        if offset == 0:
            order = _epoch_order(epoch, len(latents))
        index = order[offset * BATCH : (offset + 1) * BATCH]
        clean = latents[index].float()
        dropped = torch.rand(BATCH, generator=run.generator) < DROPOUT
        tokens = torch.where(dropped[:, None], ids[-1], ids[index])
        timesteps = ((torch.arange(BATCH) + torch.rand(BATCH, generator=run.generator)) / BATCH * 1000).long()
        noise = torch.randn(clean.shape, generator=run.generator)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        predicted = run.unet(noisy, timesteps, run.text_encoder(tokens).last_hidden_state).sample
        denoising = F.mse_loss(predicted, velocity)
        aligned = alignment_loss(run.head(run.captured["features"]), shape_map[index], color_map[index])
        (denoising + ALIGNMENT * aligned).backward()
        torch.nn.utils.clip_grad_norm_(run.modules.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step = step + 1
        run.average()
        losses.append((denoising.item(), aligned.item()))
        if run.step % 50 == 0:
            mean = np.mean(losses[-50:], axis=0)
            log_line(work / "denoiser.jsonl", step=run.step, loss=float(mean[0]), alignment=float(mean[1]))
        if run.step % SAVE_EVERY == 0 or run.step == steps:
            save_state(work / "denoiser.pt", run.state())
            run.save_pipeline(work / "pipeline", vae, tokenizer)


def _epoch_order(epoch: int, size: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(1000 + epoch))
