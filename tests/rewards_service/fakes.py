"""Scorers whose right answers are plain to see; importable by Ray workers without any model library."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from rewards_service.contracts import Images, Scorer, Scores


class Brightness:
    """Mean of each image, and the prompt's length; does a little real work for each batch."""

    name = "brightness"
    outputs: tuple[str, ...] = ("brightness", "length")

    def __init__(self, work: int = 0) -> None:
        self.work = work

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        for _ in range(self.work):
            np.linalg.svd(np.ones((100, 100)))
        if "poison" in prompts:
            raise RuntimeError("cannot swallow this")
        brightness = images.reshape(len(images), -1).mean(axis=1, dtype=np.float64)
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.float32)
        return {"brightness": brightness.astype(np.float32), "length": lengths}


class Broken:
    """Gives NaN for the prompt "nan", a row too few for "short", and nothing for "mute"."""

    name = "broken"
    outputs: tuple[str, ...] = ("broken",)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        if "mute" in prompts:
            return {}
        values = np.array([np.nan if prompt == "nan" else 1.0 for prompt in prompts], dtype=np.float32)
        return {"broken": values[1:] if "short" in prompts else values}


class Gated(Brightness):
    """Waits for `gate` before each batch and remembers the batches' sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.sizes: list[int] = []

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        assert self.gate.wait(timeout=30)
        self.sizes.append(len(images))
        return super().score(images, prompts)


def fake_scorers(work: int = 0) -> list[Scorer]:
    return [Brightness(work), Broken()]


def flat_images(levels: Sequence[int], side: int = 4) -> Images:
    """One flat grey image a level."""
    return np.stack([np.full((side, side, 3), level, dtype=np.uint8) for level in levels])
