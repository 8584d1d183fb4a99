"""The aesthetic head on CLIP features: is the picture clean, whatever it shows?

Its labels need no taste: a scene is blended with noise, blur and another scene by known amounts, and
the label falls from 1 to 0 with the amount.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from rewards_service.scorers.aesthetic import AestheticHead, save_head
from rewards_service.scorers.clip import OpenClipScorer
from shapes.render import Floats, Image
from shapes.training.files import log_line
from shapes.training.scenes import load_scenes

STEPS = 600
IMAGES = 4000
LEARNING_RATE = 3e-3


def degraded(image_HWC: Image, other_HWC: Image, amount: float, rng: np.random.Generator) -> Image:
    """The image with `amount` (0 to 1) of one of three faults: blur, noise, a second scene through it."""
    image: Floats = image_HWC.astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        image = np.asarray(ndimage.gaussian_filter(image, (4 * amount, 4 * amount, 0)), np.float32)
    elif kind == 1:
        image = image + rng.normal(0, 60 * amount, image.shape).astype(np.float32)
    else:
        image = image + 0.5 * amount * (other_HWC - image)
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def train_aesthetic(work: Path, steps: int = STEPS) -> None:
    """Train the head on degraded scenes and write `work/aesthetic.safetensors`."""
    path = work / "aesthetic.safetensors"
    if path.exists():
        return
    torch.manual_seed(6)
    rng = np.random.default_rng(6)
    images = load_scenes(work / "scenes", range(1)).images[:IMAGES]
    amounts = rng.uniform(0, 1, len(images)) ** 1.5
    others = images[rng.permutation(len(images))]
    faulty = np.stack([degraded(a, b, x, rng) for a, b, x in zip(images, others, amounts, strict=True)])
    clip = OpenClipScorer.from_folder(work / "clip")
    embedding = torch.from_numpy(clip.score(faulty, [""] * len(faulty))["clip_image"])
    target = torch.from_numpy(1 - amounts).float()
    head = AestheticHead((embedding.shape[1], 64, 1), "gelu")
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=1e-3)
    split = len(images) - 500
    for step in range(steps):
        index = torch.from_numpy(rng.integers(0, split, 256))
        loss = F.mse_loss(head(embedding[index]), target[index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            with torch.no_grad():
                held = np.corrcoef(head(embedding[split:]).numpy(), target[split:].numpy())[0, 1]
            log_line(
                work / "aesthetic.jsonl", step=step + 1, loss=loss.item(), held_out_correlation=float(held)
            )
    save_head(path, head)
