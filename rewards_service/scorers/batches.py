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

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards_service.contracts import Images

TILE = 8
CHUNK = 64
"""Most rows in one network call, a multiple of TILE."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pixels:
    """uint8 images to normalised float tensors: resize the short side, crop the centre, normalise.

    Resizing is PIL's on uint8 with antialiasing, as torchvision, open_clip and the transformers image
    processors all do it; an image that already has `size` is only normalised.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    short_side: int | None = None
    """Length of the short side before the crop to `size`; None: `size` itself."""
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, images: Images, device: torch.device) -> Tensor:
        """Images [B, H, W, 3] to float32 [B, 3, size, size]."""
        if images.shape[1:3] != (self.size, self.size) or self.short_side not in (None, self.size):
            images = np.stack([self._fit(image) for image in images])
        images_BHWC = torch.from_numpy(images.astype(np.float32)).to(device)
        mean, std = (torch.tensor(list(values), device=device) for values in (self.mean, self.std))
        return ((images_BHWC / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def _fit(self, image: Images) -> Images:
        height, width = image.shape[:2]
        short = self.short_side or self.size
        scale = short / min(height, width)
        # The long side is cut, not rounded, as the libraries do.
        target = (short, int(height * scale)) if width <= height else (int(width * scale), short)
        resized = Image.fromarray(image).resize(target, self.resample)
        left, top = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))


def in_tiles(network: Callable[..., Tensor], *inputs_B: Tensor) -> Tensor:
    """Runs `network` without gradients on chunks of rows, each padded to a multiple of TILE."""
    rows = len(inputs_B[0])
    results: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, rows, CHUNK):
            chunk = [values[start : start + CHUNK] for values in inputs_B]
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
            rows.update(zip(missing, self._encode(missing), strict=True))
        for prompt in distinct:
            self._rows[prompt] = rows[prompt]
            self._rows.move_to_end(prompt)
        while len(self._rows) > self._capacity:
            self._rows.popitem(last=False)
        return torch.stack([rows[prompt] for prompt in prompts])
