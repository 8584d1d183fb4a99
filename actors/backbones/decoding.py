"""Latents into images: at full size by the model's own decoder, small for previews.

Always true here: uint8 B x H x W x 3 out; previews have at most 224 pixels a side, and whatever decodes
them, final images come from the model's own decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional

from actors.contracts import Images

PREVIEW_SIZE = 224
"""Previews are at most this many pixels a side."""


class Decoder:
    """A pipeline's VAE, and a tiny one for previews if there is one."""

    def __init__(self, vae: Any, pixels_per_latent: int, tiny: AutoencoderTiny | None = None) -> None:
        self._vae = _frozen(vae)
        self._preview_vae = self._vae if tiny is None else _frozen(tiny)
        self._pixels_per_latent = pixels_per_latent

    @torch.inference_mode()
    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """Images at full size, uint8 B x H x W x 3."""
        return _decode(self._vae, latents_BCHW)

    @torch.inference_mode()
    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """Images of at most 224 pixels a side: larger latents are shrunk before they are decoded."""
        pixels = self._pixels_per_latent
        side = max(latents_BCHW.shape[2:])
        if side * pixels > PREVIEW_SIZE:
            scale = PREVIEW_SIZE // pixels / side
            size = [max(1, round(length * scale)) for length in latents_BCHW.shape[2:]]
            latents_BCHW = functional.interpolate(latents_BCHW, size, mode="bilinear", antialias=True)
        return _decode(self._preview_vae, latents_BCHW)


def _frozen(vae: Any) -> Any:
    vae = vae.eval().requires_grad_(False)
    if vae.device.type == "cpu":  # its convolutions run faster so; docs/world.md has the ratio
        vae.to(memory_format=torch.channels_last)
    return vae


def _decode(vae: Any, latents_BCHW: torch.Tensor) -> Images:
    scaled = latents_BCHW / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    images_BCHW = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
    bytes_BCHW = ((images_BCHW / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    images: Images = bytes_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return images
