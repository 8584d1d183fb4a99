"""A small DINOv2-architecture encoder, trained by self-distillation without labels.

Student and teacher see different crops of one scene; the student matches the teacher's centred and
sharpened class distribution (DINO, Caron et al., 2021). The teacher is the student's moving average
and is what is kept.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from shapes.training.files import log_line
from shapes.training.optimizer import MuonAdamW, set_learning_rate, warmup_cosine
from shapes.training.scenes import load_scenes

STEPS = 400
BATCH = 48
LEARNING_RATE = 1e-3
PROTOTYPES = 256
CHUNKS = range(0, 3)
TEACHER_MOMENTUM = 0.99


def build_dino() -> Dinov2Model:
    """The untrained encoder (0.4M parameters): 64 x 64 images in patches of 8."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=3,
            image_size=64,
            patch_size=8,
            attn_implementation="eager",
        )
    )


def image_processor() -> BitImageProcessor:
    """What the encoder wants its images like: whole, in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return BitImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=half,
        image_std=half,
    )


def random_crops(image_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crops of 55 to 100% of the side at random places, resized back, with noise and a grey-level shift."""
    batch = len(image_BCHW)
    scale = 0.55 + 0.45 * torch.rand(batch, generator=generator)
    shift = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - scale)[:, None]
    affine = torch.zeros(batch, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(image_BCHW.shape), align_corners=False)
    crops = F.grid_sample(image_BCHW, grid, padding_mode="reflection", align_corners=False)
    brightness = 0.15 * torch.randn(batch, 1, 1, 1, generator=generator)
    return crops + brightness + 0.05 * torch.randn(crops.shape, generator=generator)


class _WithHead(nn.Module):
    def __init__(self, backbone: Dinov2Model) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(96, 192), nn.GELU(), nn.Linear(192, 64))
        self.prototypes = nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        token_BD = self.backbone(image_BCHW).last_hidden_state[:, 0]
        projected: torch.Tensor = self.prototypes(F.normalize(self.head(token_BD), dim=-1))
        return projected


def train_dino(work: Path, steps: int = STEPS) -> None:
    """Train the encoder and write `work/dino` (a transformers folder)."""
    folder = work / "dino"
    if (folder / "config.json").exists():
        return
    torch.manual_seed(5)
    rng = np.random.default_rng(5)
    generator = torch.Generator().manual_seed(5)
    images = load_scenes(work / "scenes", CHUNKS).images
    student = _WithHead(build_dino())
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    embeddings = student.backbone.embeddings.parameters()
    optimizer = MuonAdamW(student.parameters(), embeddings, LEARNING_RATE)
    center = torch.zeros(PROTOTYPES)
    for step in range(steps):
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 50))
        index = rng.integers(0, len(images), BATCH)
        image = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1
        views = torch.cat([random_crops(image, generator), random_crops(image, generator)])
        with torch.no_grad():
            taught = teacher(views)
            target = F.softmax((taught - center) / 0.05, dim=-1).roll(BATCH, 0)
            center = 0.9 * center + 0.1 * taught.mean(0)
        loss = -(target * F.log_softmax(student(views) / 0.1, dim=-1)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, current in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.lerp_(current, 1 - TEACHER_MOMENTUM)
        if (step + 1) % 50 == 0:
            entropy = -(target.mean(0) * target.mean(0).clamp_min(1e-9).log()).sum().item()
            log_line(work / "dino.jsonl", step=step + 1, loss=loss.item(), target_entropy=entropy)
    aside = work / "dino.part"
    shutil.rmtree(aside, ignore_errors=True)
    teacher.backbone.half().save_pretrained(aside)
    image_processor().save_pretrained(aside)
    os.replace(aside, folder)
