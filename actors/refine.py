"""RegionRefine: denoise again, at lower noise, where the prompt's words found little attention.

One refinement of k inner steps costs 1 + k NFE:

1. mask: soft, 1 where the highest attention any word gets is below a share of its maximum over the image.
   It covers what is below, however much or little that is.
2. the clean prediction is noised to r_noise * t with fresh noise and denoised k times down to 0. Before
   each call the unmasked region is put back to the original noised to that very level (as in RePaint,
   Lugmayr et al. 2022), so that the network never sees two noise levels in one image.
3. the refined and the original clean predictions are blended and noised to the next schedule point, the
   unmasked region with the noise the trajectory already carried: there it is an ordinary DDIM step.

Always true here: where the mask is 0, the outcome does not depend on the inner steps at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from actors.schedule import NoiseLevel
from actors.solvers import add_noise, implied_noise, solver_step

MASK_SOFTNESS = 0.1
"""Half the width of the ramp from 1 to 0, in shares of the highest attention."""
BLUR = 3.0 / 64.0
"""Standard deviation of the mask's blur as a share of the image's side: 3 at 64 latent pixels."""
BLUR_REACH = 7.0 / 3.0
"""Radius of the blur's kernel in standard deviations: 7 pixels (a kernel of 15) at 64 latent pixels."""


@dataclass(eq=False)
class Refinement:
    """A refinement under way. `position` counts the inner denoiser calls already made."""

    mask_1HW: torch.Tensor
    original_CHW: torch.Tensor
    fresh_noise_CHW: torch.Tensor
    carried_noise_CHW: torch.Tensor
    levels: tuple[NoiseLevel, ...]
    position: int = 0

    @property
    def level(self) -> NoiseLevel:
        """Where the next inner call is made."""
        return self.levels[self.position]

    def start(self) -> torch.Tensor:
        """Latents for the first inner call."""
        return _noised(self.original_CHW, self.fresh_noise_CHW, self.level)

    def step(
        self, latents_CHW: torch.Tensor, clean_CHW: torch.Tensor, null_clean_CHW: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Latents for the next inner call, given what the last one predicted; None after the last.

        null_clean_CHW is the prediction without the prompt, for CFG++.
        """
        source = self.level
        self.position += 1
        if self.position == len(self.levels):
            return None
        inside_CHW = solver_step(
            latents_CHW[None],
            clean_CHW[None],
            [source],
            [self.level],
            null_clean_BCHW=None if null_clean_CHW is None else null_clean_CHW[None],
        )[0]
        outside_CHW = _noised(self.original_CHW, self.fresh_noise_CHW, self.level)
        return torch.lerp(outside_CHW, inside_CHW, self.mask_1HW)

    def resume(self, clean_CHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Latents at a schedule point, from the last inner prediction.

        Fresh and carried noise are mixed so that the mixture keeps unit variance.
        """
        blended_CHW = torch.lerp(self.original_CHW, clean_CHW, self.mask_1HW)
        norm_1HW = (self.mask_1HW**2 + (1.0 - self.mask_1HW) ** 2).sqrt()
        noise_CHW = torch.lerp(self.carried_noise_CHW, self.fresh_noise_CHW, self.mask_1HW) / norm_1HW
        return _noised(blended_CHW, noise_CHW, level)


def make_refinement(
    attention_HW: torch.Tensor,
    latents_CHW: torch.Tensor,
    clean_CHW: torch.Tensor,
    fresh_noise_CHW: torch.Tensor,
    level: NoiseLevel,
    inner_levels: tuple[NoiseLevel, ...],
    threshold: float,
) -> Refinement:
    """A refinement of the clean prediction made at `level`, not yet begun."""
    _, height, width = latents_CHW.shape
    return Refinement(
        mask_1HW=region_mask(attention_HW, (height, width), threshold)[None],
        original_CHW=clean_CHW,
        fresh_noise_CHW=fresh_noise_CHW,
        carried_noise_CHW=implied_noise(latents_CHW[None], clean_CHW[None], [level])[0],
        levels=inner_levels,
    )


def inner_timesteps(timestep: float, share: float, steps: int) -> list[float]:
    """Where the inner calls are made: evenly from share * timestep towards 0."""
    return [share * timestep * (steps - step) / steps for step in range(steps)]


def region_mask(attention_HW: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """1 where attention is well below `threshold` of its maximum, 0 where it is well above; `size` large.

    Attention that is zero everywhere (a prompt without words) masks the whole image.
    """
    attention_HW = functional.interpolate(attention_HW[None, None].float(), size, mode="bilinear")[0, 0]
    share_HW = attention_HW / attention_HW.amax().clamp_min(torch.finfo(torch.float32).tiny)
    mask_HW = ((threshold + MASK_SOFTNESS - share_HW) / (2.0 * MASK_SOFTNESS)).clamp(0.0, 1.0)
    return gaussian_blur(mask_HW, BLUR * min(size))


def gaussian_blur(image_HW: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian blur; the border is reflected, so that it is not darkened."""
    radius = min(math.ceil(BLUR_REACH * sigma), min(image_HW.shape) - 1)
    offsets_K = torch.arange(-radius, radius + 1, device=image_HW.device, dtype=image_HW.dtype)
    kernel_K = torch.exp(-0.5 * (offsets_K / sigma) ** 2)
    kernel_K = kernel_K / kernel_K.sum()
    padded = functional.pad(image_HW[None, None], (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel_K.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel_K.view(1, 1, -1, 1))[0, 0].clamp(0.0, 1.0)


def _noised(clean_CHW: torch.Tensor, noise_CHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    return add_noise(clean_CHW[None], noise_CHW[None], [level])[0]
