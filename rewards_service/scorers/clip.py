"""CLIP through open_clip: how well an image fits its prompt, and both embeddings.

Always true: one image pass gives score and embeddings; embeddings have unit length, so that `clip_score`
is their cosine. Preprocessing and tokenizer are those the weights were trained with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL import Image
from torch import Tensor

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import Pixels, TextCache, in_tiles, unit_rows

Tokenizer = Callable[[list[str]], Tensor]


class OpenClipScorer:
    """Scores `clip_score` [N], `clip_image` [N, D] and `clip_text` [N, D] with an open_clip model."""

    name = "clip"
    outputs: tuple[str, ...] = ("clip_score", "clip_image", "clip_text")

    def __init__(
        self, model: Any, pixels: Pixels, tokenizer: Tokenizer, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.pixels = pixels
        self.tokenizer = tokenizer
        self.text = TextCache(self._encode_text)

    @classmethod
    def from_folder(cls, folder: str | Path, device: str | torch.device = "cpu") -> OpenClipScorer:
        """Loads `open_clip_config.json` and `open_clip_model.safetensors`, as open_clip pushes to a hub.

        A tokenizer's files may lie in the folder or its `tokenizer/`; else open_clip's own is used.
        """
        folder = Path(folder)
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        architecture = dict(config["model_cfg"])
        text_config = architecture["text_cfg"]
        custom_text = architecture.pop("custom_text", False) or "hf_model_name" in text_config
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**architecture)
        open_clip.load_checkpoint(model, str(folder / "open_clip_model.safetensors"))
        preprocess = merge_preprocess_dict(PreprocessCfg(), config.get("preprocess_cfg", {}))
        preprocess["size"] = architecture["vision_cfg"]["image_size"]
        return cls(model, _pixels(preprocess), _tokenizer(folder, text_config), device)

    @classmethod
    def pretrained(cls, model_name: str, tag: str, device: str | torch.device = "cpu") -> OpenClipScorer:
        """Loads a model that open_clip knows by name, for example ("ViT-L-14-quickgelu", "openai")."""
        model = open_clip.create_model(model_name, pretrained=tag)
        return cls(model, _pixels(model.visual.preprocess_cfg), open_clip.get_tokenizer(model_name), device)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One image pass for all three outputs; prompts seen lately are not encoded again."""
        image_ND = unit_rows(in_tiles(self.model.encode_image, self.pixels(images, self.device)))
        text_ND = self.text(prompts)
        score_N = (image_ND * text_ND).sum(dim=-1)
        return {
            "clip_score": score_N.cpu().numpy(),
            "clip_image": image_ND.cpu().numpy(),
            "clip_text": text_ND.cpu().numpy(),
        }

    def _encode_text(self, prompts: list[str]) -> Tensor:
        tokens_BL = self.tokenizer(prompts).to(self.device)
        return unit_rows(in_tiles(self.model.encode_text, tokens_BL))


def _pixels(preprocess: dict[str, object]) -> Pixels:
    """open_clip's evaluation transform as `Pixels`."""
    config = PreprocessCfg(**preprocess)
    sides = config.size if isinstance(config.size, (tuple, list)) else (config.size, config.size)
    if sides[0] != sides[1] or config.resize_mode != "shortest":
        raise ValueError(
            f"CLIP preprocessing {config.resize_mode!r} to {tuple(sides)}; accepted: 'shortest', square"
        )
    bilinear = config.interpolation == "bilinear"
    resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    return Pixels(sides[0], tuple(config.mean), tuple(config.std), resample=resample)


def _tokenizer(folder: Path, text_config: dict[str, object]) -> Tokenizer:
    length = int(str(text_config.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)))
    for place in (folder, folder / "tokenizer"):
        if (place / "tokenizer_config.json").is_file():
            local: Tokenizer = open_clip.tokenizer.HFTokenizer(str(place), context_length=length)
            return local
    if "hf_tokenizer_name" in text_config:
        named: Tokenizer = open_clip.tokenizer.HFTokenizer(
            str(text_config["hf_tokenizer_name"]), context_length=length
        )
        return named
    own: Tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=length)
    return own
