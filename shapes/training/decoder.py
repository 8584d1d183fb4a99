"""The decoder alone, trained on after the denoiser, which only ever sees latents.

The encoder stays as it is, so the denoiser's latents keep their meaning while the pictures made from them
get sharper; noise on the latents keeps the decoder forgiving.

Always true: `work/decoder` is whole or not there; whoever uses the pipeline takes its autoencoder from it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from shapes.training.files import load_state, log_line, save_state
from shapes.training.optimizer import set_learning_rate, warmup_cosine
from shapes.training.scenes import load_scenes
from shapes.training.vae import BATCH, LATENT_NOISE, reconstruction_loss

STEPS = 3000
LEARNING_RATE = 1.5e-3
CHUNKS = range(0, 6)


def train_decoder(work: Path, steps: int = STEPS) -> AutoencoderTiny:
    """Train (or finish training) the decoder; the whole autoencoder stands in `work/decoder`."""
    if (work / "decoder" / "config.json").exists():
        return AutoencoderTiny.from_pretrained(work / "decoder").eval()
    vae = AutoencoderTiny.from_pretrained(work / "vae")
    images = torch.from_numpy(load_scenes(work / "scenes", CHUNKS).images)
    optimizer = torch.optim.AdamW(
        vae.decoder.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=1e-3
    )
    start = 0
    if state := load_state(work / "decoder.pt"):
        vae.decoder.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, steps):
        rng = np.random.default_rng([8, step])
        generator = torch.Generator().manual_seed(8_000 + step)
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 60))
        index = torch.from_numpy(rng.integers(0, len(images), BATCH))
        image = images[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encoder(image)
            latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        output = vae.decoder(latents)
        loss = reconstruction_loss(output, image)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            psnr = 10 * math.log10(4 / F.mse_loss(output, image).item())
            log_line(work / "decoder.jsonl", step=step + 1, loss=loss.item(), psnr=psnr)
            save_state(
                work / "decoder.pt",
                {"model": vae.decoder.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
            )
    vae.eval()
    vae.save_pretrained(work / "decoder")
    return vae
