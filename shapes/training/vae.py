"""The autoencoder (64 x 64 x 3 to 16 x 16 x 4 latents), an `AutoencoderTiny`.

The loss is weighted towards the objects: with a plain one the background's texture takes the capacity
and a third of the scenes is no longer right after reconstruction. Latents are pulled to zero mean and
unit variance in every channel, and the decoder sees noisy ones, so that small errors of the denoiser
stay small in the picture.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from shapes.training.files import load_state, log_line, save_state
from shapes.training.optimizer import set_learning_rate, warmup_cosine
from shapes.training.scenes import load_scenes

STEPS = 1500
BATCH = 16
LEARNING_RATE = 2.5e-3
LATENT_NOISE = 0.08
CHUNKS = range(0, 3)
SAVE_EVERY = 250


def build_vae() -> AutoencoderTiny:
    """The untrained autoencoder (0.09M parameters)."""
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
    )


def reconstruction_loss(output_BCHW: torch.Tensor, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error weighted 9 to 1 towards saturated pixels, plus the error of gradients."""
    chroma = image_BCHW.amax(1, keepdim=True) - image_BCHW.amin(1, keepdim=True)
    weight = F.max_pool2d((chroma > 0.4).float(), 3, 1, 1) * 5 + 0.6
    weight = weight / weight.mean()
    difference = output_BCHW - image_BCHW
    gradients = difference.diff(dim=3).abs().mean() + difference.diff(dim=2).abs().mean()
    return 4 * (difference.square() * weight).mean() + (difference.abs() * weight).mean() + 0.6 * gradients


def train_vae(work: Path, steps: int = STEPS) -> AutoencoderTiny:
    """Train (or finish training) the autoencoder; the result stands in `work/vae`."""
    if (work / "vae" / "config.json").exists():
        return AutoencoderTiny.from_pretrained(work / "vae").eval()
    torch.manual_seed(1)
    images = torch.from_numpy(load_scenes(work / "scenes", CHUNKS).images)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    generator = torch.Generator().manual_seed(1)
    start = 0
    if state := load_state(work / "vae.pt"):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        start = state["step"]
    for step in range(start, steps):
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 60, floor=0.02))
        index = torch.randint(0, len(images), (BATCH,), generator=generator)
        image = images[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = vae.encoder(image)
        noise = torch.randn(latents.shape, generator=generator)
        output = vae.decoder(latents + LATENT_NOISE * noise)
        spread = latents.mean((0, 2, 3)).square().mean() + (latents.var((0, 2, 3)) - 1).square().mean()
        loss = reconstruction_loss(output, image) + 0.03 * spread
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            psnr = 10 * math.log10(4 / F.mse_loss(output, image).item())
            log_line(work / "vae.jsonl", step=step + 1, loss=loss.item(), psnr=psnr)
        if (step + 1) % SAVE_EVERY == 0:
            save_state(
                work / "vae.pt",
                {
                    "model": vae.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "step": step + 1,
                },
            )
    vae.eval()
    with torch.no_grad():
        sample = images[-1024:].permute(0, 3, 1, 2).float() / 127.5 - 1
        deviation = torch.cat([vae.encoder(part) for part in sample.split(64)]).std().item()
    vae.register_to_config(scaling_factor=1 / deviation)
    vae.save_pretrained(work / "vae")
    return vae
