"""How images become network inputs and how networks are run, the same way for every scorer.

Always true: a row's result does not depend on the other rows of its batch. Matrix kernels are chosen by
the number of rows, which moves the last bits of a float; so every network call is padded to a multiple
of `TILE` rows, and the same image and prompt then score bit for bit the same alone and in any company
(measured on the CPU; elsewhere to rounding). Runs repeat exactly however calls happened to be merged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards_service.contracts import Images

TILE = 8
CHUNK = 64
"""Most rows in one network call unless a scorer is told otherwise, a multiple of TILE."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: How an image becomes a square: the short side fits and the centre is cut out, the long side fits and the
#: rest is black, or both sides fit.
Fit = Literal["crop", "pad", "squash"]


@dataclass(frozen=True)
class Pixels:
    """uint8 images to normalised float tensors: make them square, normalise.

    Resizing is PIL's on uint8 with antialiasing, as torchvision, open_clip and the transformers image
    processors all do it; an image that already has `size` is only normalised.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    short_side: int | None = None
    """Length of the short side before the crop to `size`; None: `size` itself."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    fit: Fit = "crop"
    rounded_crop: bool = False
    """Half a pixel of margin is rounded to even, as in torchvision; if False cut, as in transformers."""

    def __call__(self, images: Images, device: torch.device) -> Tensor:
        """Images [B, H, W, 3] to float32 [B, 3, size, size]."""
        if images.shape[1:3] != (self.size, self.size) or self.short_side not in (None, self.size):
            images = np.stack([self._fit(image) for image in images])
        images_BHWC = torch.from_numpy(images.astype(np.float32)).to(device)
        mean, std = (torch.tensor(list(values), device=device) for values in (self.mean, self.std))
        return ((images_BHWC / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def _fit(self, image: Images) -> Images:
        height, width = image.shape[:2]
        picture = Image.fromarray(image)
        if self.fit == "squash":
            return np.asarray(picture.resize((self.size, self.size), self.resample))
        if self.fit == "pad":
            ratio = max(height, width) / self.size
            fitted = picture.resize((round(width / ratio), round(height / ratio)), self.resample)
            square = Image.new("RGB", (self.size, self.size))
            square.paste(fitted, ((self.size - fitted.width) // 2, (self.size - fitted.height) // 2))
            return np.asarray(square)
        short = self.short_side or self.size
        # The long side is cut, not rounded, as the libraries do.
        long = short * max(height, width) // min(height, width)
        resized = picture.resize((short, long) if width <= height else (long, short), self.resample)
        left, top = self._margin(resized.width), self._margin(resized.height)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))

    def _margin(self, side: int) -> int:
        excess = side - self.size
        return round(excess / 2) if self.rounded_crop else excess // 2


def in_tiles(network: Callable[..., Tensor], *inputs_B: Tensor, batch_size: int = CHUNK) -> Tensor:
    """Runs `network` without gradients on chunks of rows, each padded to a multiple of TILE; float32 out."""
    rows = len(inputs_B[0])
    results: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, rows, batch_size):
            chunk = [values[start : start + batch_size] for values in inputs_B]
            count = len(chunk[0])
            missing = -count % TILE
            padded = [torch.cat([values, values[-1:].expand(missing, *values.shape[1:])]) for values in chunk]
            results.append(network(*padded)[:count])
    return torch.cat(results).float()


def unit_rows(vectors_BD: Tensor) -> Tensor:
    """Rows scaled to unit length."""
    return torch.nn.functional.normalize(vectors_BD, dim=-1)


class TextCache:
    """Embeddings of the last `capacity` distinct prompts; a prompt is encoded once while it stays."""

    def __init__(self, encode: Callable[[list[str]], Tensor], capacity: int = 4096) -> None:
        self._encode = encode
        self._capacity = capacity
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of B prompts, in order."""
        distinct = list(dict.fromkeys(prompts))
        missing = [prompt for prompt in distinct if prompt not in self._rows]
        self.hits += len(distinct) - len(missing)
        self.misses += len(missing)
        rows = {prompt: self._rows[prompt] for prompt in distinct if prompt in self._rows}
        if missing:
            # Copies: a row that stays must not keep the whole batch it was encoded in.
            encoded = (row.clone() for row in self._encode(missing))
            rows.update(zip(missing, encoded, strict=True))
        for prompt in distinct:
            self._rows[prompt] = rows[prompt]
            self._rows.move_to_end(prompt)
        while len(self._rows) > self._capacity:
            self._rows.popitem(last=False)
        return torch.stack([rows[prompt] for prompt in prompts])
