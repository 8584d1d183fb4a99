"""DINOv2 image embeddings, whose cosine says how much two pictures of one episode differ.

Always true: `dino` is the classification token after the last norm, scaled to unit length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import IMAGENET_MEAN, IMAGENET_STD, Pixels, in_tiles, unit_rows


class DinoScorer:
    """Gives `dino` [N, D] for N images; prompts are not looked at."""

    name = "dino"
    outputs: tuple[str, ...] = ("dino",)

    def __init__(self, model: Dinov2Model, pixels: Pixels, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.pixels = pixels

    @classmethod
    def from_folder(cls, folder: str | Path, device: str | torch.device = "cpu") -> DinoScorer:
        """Loads a transformers folder; without `preprocessor_config.json` images get the model's size."""
        model = Dinov2Model.from_pretrained(str(folder)).float()
        return cls(model, _pixels(Path(folder), model.config.image_size), device)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One image pass."""
        return {"dino": unit_rows(in_tiles(self._embed, self.pixels(images, self.device))).cpu().numpy()}

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        class_BD: Tensor = self.model(images_BCHW).last_hidden_state[:, 0]
        return class_BD


def _pixels(folder: Path, image_size: int) -> Pixels:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Pixels(image_size, IMAGENET_MEAN, IMAGENET_STD)
    config = json.loads(path.read_text(encoding="utf-8"))
    crop = config["crop_size"]["height"] if config.get("do_center_crop", True) else None
    short = config["size"].get("shortest_edge") or config["size"]["height"]
    mean, std = config["image_mean"], config["image_std"]
    return Pixels(crop or short, mean, std, short_side=short, resample=Image.Resampling(config["resample"]))
