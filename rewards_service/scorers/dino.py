"""DINOv2 image embeddings, whose cosine says how much two pictures of one episode differ.

Always true: `dino` is the classification token after the last norm, scaled to unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Dinov2Model

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import (
    CHUNK,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pixels,
    in_tiles,
    unit_rows,
)
from rewards_service.scorers.pretrained import pretrained_model, processor_pixels


class DinoScorer:
    """Gives `dino` [N, D] for N images; prompts are not looked at."""

    name = "dino"
    outputs: tuple[str, ...] = ("dino",)

    def __init__(
        self,
        model: Dinov2Model,
        pixels: Pixels,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.model = model.to(self.device, dtype).eval()  # type: ignore[arg-type]
        self.pixels = pixels
        self.batch_size = batch_size

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
    ) -> DinoScorer:
        """Loads a hub id or a transformers folder; without an image processor's settings images get the
        model's size and ImageNet's statistics.
        """
        model = pretrained_model(Dinov2Model, name)
        plain = Pixels(model.config.image_size, IMAGENET_MEAN, IMAGENET_STD)
        return cls(model, processor_pixels(name) or plain, device, dtype=dtype, batch_size=batch_size)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One image pass."""
        pixels_NCHW = self.pixels(images, self.device)
        embeddings_ND = unit_rows(in_tiles(self._embed, pixels_NCHW, batch_size=self.batch_size))
        return {"dino": embeddings_ND.cpu().numpy()}

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        class_BD: Tensor = self.model(images_BCHW.to(self.dtype)).last_hidden_state[:, 0]
        return class_BD
