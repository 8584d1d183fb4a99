"""The public ImageReward model, batched.

Always true: a batch scores as the package's own one-image `score` does. This is the one place that knows
how image-reward 1.5, written for older transformers, is imported beside today's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.modeling_utils
import transformers.pytorch_utils
from torch import Tensor

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import CLIP_MEAN, CLIP_STD, Pixels, in_tiles

MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")
MAX_TOKENS = 35
"""Prompt length the model was trained with, padding included."""


def import_package() -> ModuleType:
    """Imports ImageReward, after putting back three functions that transformers has moved elsewhere."""
    for name in MOVED:
        if not hasattr(transformers.modeling_utils, name):
            setattr(transformers.modeling_utils, name, getattr(transformers.pytorch_utils, name))
    import ImageReward

    package: ModuleType = ImageReward
    return package


class ImageRewardScorer:
    """Gives `image_reward` [N], about -2.5 to 2.5, higher is better."""

    name = "image_reward"
    outputs: tuple[str, ...] = ("image_reward",)

    def __init__(self, model: Any, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.pixels = Pixels(224, CLIP_MEAN, CLIP_STD)

    @classmethod
    def load(
        cls, checkpoint: str | Path, med_config: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> ImageRewardScorer:
        """Loads a checkpoint file with its med_config.json, or the published name "ImageReward-v1.0"."""
        config = None if med_config is None else str(med_config)
        return cls(import_package().load(str(checkpoint), device=str(device), med_config=config), device)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One pass over images and prompts together."""
        text = self.model.blip.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        pixels_NCHW = self.pixels(images, self.device)
        rewards_N = in_tiles(self._rewards, text.input_ids, text.attention_mask, pixels_NCHW)
        return {"image_reward": rewards_N.cpu().numpy()}

    def _rewards(self, tokens_BL: Tensor, mask_BL: Tensor, images_BCHW: Tensor) -> Tensor:
        rewards_B1: Tensor = self.model.score_gard(tokens_BL, mask_BL, images_BCHW)
        return rewards_B1[:, 0]
