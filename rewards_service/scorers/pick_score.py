"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): a CLIP ViT-H/14 tuned on the choices of Pick-a-Pic.

Always true: `pick_score` is the cosine of both embeddings times the exponential of the model's logit scale,
as its authors compute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import (
    CHUNK,
    CLIP_MEAN,
    CLIP_STD,
    Pixels,
    TextCache,
    in_tiles,
    unit_rows,
)
from rewards_service.scorers.pretrained import pretrained_model, processor_pixels


class PickScorer:
    """Gives `pick_score` [N], about 15 to 25, higher is better."""

    name = "pick_score"
    outputs: tuple[str, ...] = ("pick_score",)

    def __init__(
        self,
        model: CLIPModel,
        pixels: Pixels,
        tokenizer: Any,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
        cached_prompts: int = 4096,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.scale = model.logit_scale.detach().exp().item()  # before the cast, which would move it
        self.model = model.to(self.device, dtype).eval()  # type: ignore[arg-type]
        self.pixels = pixels
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.text = TextCache(self._encode_text, cached_prompts)

    @classmethod
    def load(
        cls,
        name: str | Path,
        processor: str | Path,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
        cached_prompts: int = 4096,
    ) -> PickScorer:
        """Loads the model and, from `processor`, tokenizer and image settings: hub ids or folders."""
        model = pretrained_model(CLIPModel, name)
        plain = Pixels(model.config.vision_config.image_size, CLIP_MEAN, CLIP_STD)
        return cls(
            model,
            processor_pixels(processor) or plain,
            AutoTokenizer.from_pretrained(str(processor)),
            device,
            dtype=dtype,
            batch_size=batch_size,
            cached_prompts=cached_prompts,
        )

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One image pass; prompts seen lately are not encoded again."""
        pixels_NCHW = self.pixels(images, self.device)
        image_ND = unit_rows(in_tiles(self._encode_image, pixels_NCHW, batch_size=self.batch_size))
        cosine_N = (image_ND * self.text(prompts)).sum(dim=-1)
        return {"pick_score": (self.scale * cosine_N).cpu().numpy()}

    def _encode_image(self, images_BCHW: Tensor) -> Tensor:
        embeddings_BD: Tensor = self.model.get_image_features(images_BCHW.to(self.dtype))
        return embeddings_BD

    def _encode_text(self, prompts: list[str]) -> Tensor:
        text = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        embeddings_BD = in_tiles(
            self.model.get_text_features, text.input_ids, text.attention_mask, batch_size=self.batch_size
        )
        return unit_rows(embeddings_BD)
