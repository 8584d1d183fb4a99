"""Where RegionRefine denoises again: one small unit for each way to tell (`engine.refine_region`).

| region | denoises again | knows |
|---|---|---|
| attention | where no word of the prompt finds much attention | the denoiser's cross-attention |
| change | where the clean prediction changed most since the last schedule point | two predictions |
| learned | where a small network expects it to change most until the end | its training |
| random | cells of a grid, drawn from the episode's generator | nothing: a control |
| grid | cells of a grid in order, on with every refinement | nothing: a control |

Always true here: a region depends on its own episode alone; it says 1 where to denoise again and 0 where
not; every one of them is blurred in the same way before it is used, so that no border shows. The first
three compare each position with the image's maximum at one threshold and cover what lies beyond it,
however much that is; the controls cover a fixed share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch.nn import functional

from actors.errors import UserError
from actors.region_head import RemainingChangeHead, load_region_head, local_change

if TYPE_CHECKING:
    from actors.contracts import Backbone
    from actors.episode import EngineConfig, Episode

RegionName = Literal["attention", "grid", "random", "change", "learned"]

MASK_SOFTNESS = 0.1
"""Half the width of the ramp from 1 to 0, in shares of the maximum."""
BLUR = 3.0 / 64.0
"""Standard deviation of the mask's blur as a share of the image's side: 3 at 64 latent pixels."""
BLUR_REACH = 7.0 / 3.0
"""Radius of the blur's kernel in standard deviations: 7 pixels (a kernel of 15) at 64 latent pixels."""


class Region(Protocol):
    """One way to tell where to denoise again."""

    @property
    def needs_attention(self) -> bool:
        """Whether the denoiser's cross-attention has to be recorded for it."""
        ...

    def possible(self, episode: Episode) -> bool:
        """Whether what it goes by is there."""
        ...

    def choose(self, episode: Episode) -> torch.Tensor:
        """H x W of the latents' size, 1 where to denoise again; called once for a refinement, if possible."""
        ...


@dataclass(frozen=True)
class AttentionRegion:
    """Where the highest attention that any word gets is below `threshold` of its maximum over the image.

    Attention that is zero everywhere (a prompt without words) makes it the whole image.
    """

    threshold: float
    needs_attention: bool = True

    def possible(self, episode: Episode) -> bool:
        """Where the last denoiser call recorded it."""
        return episode.attention_HW is not None

    def choose(self, episode: Episode) -> torch.Tensor:
        """Attention is recorded at a coarser size, and interpolated."""
        assert episode.attention_HW is not None, "refine without recorded attention"
        size = episode.latents_CHW.shape[1:]
        maps_11HW = episode.attention_HW[None, None].float()
        attention_HW = functional.interpolate(maps_11HW, size, mode="bilinear")[0, 0]
        return below(share_of_maximum(attention_HW), self.threshold)


@dataclass(frozen=True)
class GridRegion:
    """A sweep over `cells` x `cells` cells in reading order: `share` of them at a time, then on, and around.

    It goes on from one refinement of an episode to the next, restarts included.
    """

    cells: int
    share: float
    needs_attention: bool = False

    def possible(self, episode: Episode) -> bool:
        """Always."""
        return True

    def choose(self, episode: Episode) -> torch.Tensor:
        """The cells whose turn it is."""
        count = cell_count(self.cells, self.share)
        turn_N = torch.arange(count) + episode.refinements * count
        return _cover(turn_N % self.cells**2, self.cells, episode.latents_CHW)


@dataclass(frozen=True)
class RandomRegion:
    """`share` of `cells` x `cells` cells, drawn anew for each refinement from the episode's generator."""

    cells: int
    share: float
    needs_attention: bool = False

    def possible(self, episode: Episode) -> bool:
        """Always."""
        return True

    def choose(self, episode: Episode) -> torch.Tensor:
        """Different cells, each as likely as any other."""
        drawn_N = torch.randperm(self.cells**2, generator=episode.generator)
        return _cover(drawn_N[: cell_count(self.cells, self.share)], self.cells, episode.latents_CHW)


@dataclass(frozen=True)
class ChangeRegion:
    """Where the clean prediction changed by more than `1 - threshold` of the largest local change.

    What is still unsettled gets the compute, as in region-adaptive sampling (Liu et al. 2025, arXiv
    2502.10389), which also goes by the network's own last outputs.
    """

    threshold: float
    needs_attention: bool = False

    def possible(self, episode: Episode) -> bool:
        """Where there is a prediction from the schedule point before: not after a restart or a refinement."""
        return episode.history is not None

    def choose(self, episode: Episode) -> torch.Tensor:
        """Nothing where nothing changed."""
        assert episode.history is not None, "no earlier prediction to compare with"
        change_HW = local_change(episode.clean_CHW[None], episode.history[0][None])[0]
        return below(1.0 - share_of_maximum(change_HW), self.threshold)


@dataclass(frozen=True, eq=False)
class LearnedRegion:
    """Where `head` expects more than `1 - threshold` of the largest change that is still to come."""

    head: RemainingChangeHead
    threshold: float
    needs_attention: bool = False

    def possible(self, episode: Episode) -> bool:
        """Always: the head knows to do without an earlier prediction."""
        return True

    def choose(self, episode: Episode) -> torch.Tensor:
        """The head is asked for this episode alone, so that no neighbour has a say."""
        previous_CHW = episode.history[0] if episode.history else None
        forecast_HW = self.head.forecast(episode.clean_CHW, previous_CHW, episode.timestep)
        return below(1.0 - share_of_maximum(forecast_HW), self.threshold)


def make_region(config: EngineConfig, backbone: Backbone) -> Region:
    """The region that the configuration names.

    Raises UserError if the grid is finer than the latents, or the head is missing, damaged or another's.
    """
    cells, share, threshold = config.refine_grid, config.refine_share, config.refine_threshold
    channels, *size = backbone.latent_shape
    match config.refine_region:
        case "attention":
            return AttentionRegion(threshold)
        case "change":
            return ChangeRegion(threshold)
        case "learned":
            assert config.refine_head is not None
            head = load_region_head(config.refine_head, channels=channels, backbone=backbone.identity)
            return LearnedRegion(head.to(backbone.device), threshold)
    if cells > min(size):
        raise UserError(
            f"engine.refine_grid is {cells}; accepted with this backbone: a whole number up to {min(size)}"
        )
    return GridRegion(cells, share) if config.refine_region == "grid" else RandomRegion(cells, share)


def region_mask(region: Region, episode: Episode) -> torch.Tensor:
    """What a refinement of the episode denoises again: H x W of the latents' size, from 0 to 1, blurred."""
    chosen_HW = region.choose(episode)
    return gaussian_blur(chosen_HW, BLUR * min(chosen_HW.shape))


def cell_count(cells: int, share: float) -> int:
    """How many of cells x cells make up that share: at least one."""
    return max(1, round(share * cells**2))


def share_of_maximum(values_HW: torch.Tensor) -> torch.Tensor:
    """Values from 0 up as shares of the largest; all 0 where it is 0."""
    return values_HW / values_HW.amax().clamp_min(torch.finfo(values_HW.dtype).tiny)


def below(share_HW: torch.Tensor, threshold: float) -> torch.Tensor:
    """1 where a share is well below the threshold, 0 where it is well above, a ramp between."""
    return ((threshold + MASK_SOFTNESS - share_HW) / (2.0 * MASK_SOFTNESS)).clamp(0.0, 1.0)


def gaussian_blur(image_HW: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian blur; the border is reflected, so that it is not darkened."""
    radius = min(math.ceil(BLUR_REACH * sigma), min(image_HW.shape) - 1)
    offsets_K = torch.arange(-radius, radius + 1, device=image_HW.device, dtype=image_HW.dtype)
    kernel_K = torch.exp(-0.5 * (offsets_K / sigma) ** 2)
    kernel_K = kernel_K / kernel_K.sum()
    padded = functional.pad(image_HW[None, None], (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel_K.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel_K.view(1, 1, -1, 1))[0, 0].clamp(0.0, 1.0)


def _cover(chosen_N: torch.Tensor, cells: int, latents_CHW: torch.Tensor) -> torch.Tensor:
    """1 in the chosen cells, counted in reading order; where they cannot be equal, they nearly are."""
    _, height, width = latents_CHW.shape
    rows_H = torch.arange(height) * cells // height
    columns_W = torch.arange(width) * cells // width
    covered_HW = torch.isin(rows_H[:, None] * cells + columns_W, chosen_N)
    return covered_HW.to(latents_CHW.device, torch.float32)
