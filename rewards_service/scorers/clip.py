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
from rewards_service.scorers.batches import CHUNK, Fit, Pixels, TextCache, in_tiles, unit_rows
from rewards_service.scorers_config import HUB

Tokenizer = Callable[[list[str]], Tensor]
CONFIG, WEIGHTS = "open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

#: open_clip's resize modes.
_FITS: dict[str, Fit] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


class OpenClipScorer:
    """Scores `clip_score` [N], `clip_image` [N, D] and `clip_text` [N, D] with an open_clip model."""

    name = "clip"
    outputs: tuple[str, ...] = ("clip_score", "clip_image", "clip_text")

    def __init__(
        self,
        model: Any,
        pixels: Pixels,
        tokenizer: Tokenizer,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
        cached_prompts: int = 4096,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.model = model.to(self.device, dtype).eval()
        self.pixels = pixels
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.text = TextCache(self._encode_text, cached_prompts)

    @classmethod
    def load(
        cls,
        model: str | Path,
        pretrained: str | Path | None = None,
        device: str | torch.device = "cpu",
        *,
        resize_mode: str | None = None,
        **options: Any,
    ) -> OpenClipScorer:
        """Loads a folder, a hub's model ("hf-hub:OWNER/REPOSITORY"), or one that open_clip knows by name.

        pretrained: for a name, open_clip's tag or a checkpoint file, else None; resize_mode: open_clip's,
        where the weights want another than open_clip thinks; options: see the class.
        """
        name = str(model)
        whole = Path(name).is_dir() or name.startswith(HUB)
        if whole and pretrained is not None:
            raise ValueError(f"has weights of its own, pretrained={str(pretrained)!r}; accepted: null")
        if Path(name).is_dir():
            return cls.from_folder(name, device, **options)
        if not whole and pretrained is None:
            raise ValueError("pretrained=null; accepted: a tag or a checkpoint file, or a folder as model")
        loaded = open_clip.create_model(
            name,
            pretrained=None if pretrained is None else str(pretrained),
            force_preprocess_cfg={"resize_mode": resize_mode},
        )
        tokenizer = open_clip.get_tokenizer(name)
        return cls(loaded, _pixels(loaded.visual.preprocess_cfg), tokenizer, device, **options)

    @classmethod
    def from_folder(
        cls, folder: str | Path, device: str | torch.device = "cpu", **options: Any
    ) -> OpenClipScorer:
        """Loads `open_clip_config.json` and the weights, as open_clip pushes to a hub.

        A tokenizer's files may lie in the folder or its `tokenizer/`; else open_clip's own is used.
        """
        folder = Path(folder)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        architecture = dict(config["model_cfg"])
        text_config = architecture["text_cfg"]
        if "hf_model_name" in text_config:  # its weights are in the folder too
            text_config = architecture["text_cfg"] = {**text_config, "hf_model_pretrained": False}
        custom_text = architecture.pop("custom_text", False) or "hf_model_name" in text_config
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**architecture)
        weights = [folder / file for file in WEIGHTS if (folder / file).is_file()]
        if not weights:
            raise ValueError(f"folder {folder}: no {WEIGHTS[0]!r} in it")
        open_clip.load_checkpoint(model, str(weights[0]), weights_only=True)
        preprocess = merge_preprocess_dict(PreprocessCfg(), config.get("preprocess_cfg", {}))
        preprocess["size"] = architecture["vision_cfg"]["image_size"]
        return cls(model, _pixels(preprocess), _tokenizer(folder, text_config), device, **options)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One image pass for all three outputs; prompts seen lately are not encoded again."""
        pixels_NCHW = self.pixels(images, self.device)
        image_ND = unit_rows(in_tiles(self._encode_image, pixels_NCHW, batch_size=self.batch_size))
        text_ND = self.text(prompts)
        score_N = (image_ND * text_ND).sum(dim=-1)
        return {
            "clip_score": score_N.cpu().numpy(),
            "clip_image": image_ND.cpu().numpy(),
            "clip_text": text_ND.cpu().numpy(),
        }

    def _encode_image(self, images_BCHW: Tensor) -> Tensor:
        embeddings_BD: Tensor = self.model.encode_image(images_BCHW.to(self.dtype))
        return embeddings_BD

    def _encode_text(self, prompts: list[str]) -> Tensor:
        tokens_BL = self.tokenizer(prompts).to(self.device)
        return unit_rows(in_tiles(self.model.encode_text, tokens_BL, batch_size=self.batch_size))


def _pixels(preprocess: dict[str, object]) -> Pixels:
    """open_clip's evaluation transform as `Pixels`."""
    config = PreprocessCfg(**preprocess)
    sides = config.size if isinstance(config.size, (tuple, list)) else (config.size, config.size)
    if sides[0] != sides[1]:
        raise ValueError(f"CLIP preprocessing to {tuple(sides)}; accepted: a square")
    bilinear = config.interpolation == "bilinear"
    return Pixels(
        sides[0],
        tuple(config.mean),
        tuple(config.std),
        resample=Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC,
        fit=_FITS[config.resize_mode],
        rounded_crop=True,
    )


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
