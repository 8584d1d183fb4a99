"""Scorers whose right answers are plain to see; importable by Ray workers without any model library."""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards_service.actor import BuildScorers, PoolSpec
from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.pool_config import PoolConfig


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


class Checksum:
    """A number that belongs to one image and one prompt only; prompts may ask for one fault each.

    A prompt that contains "die", "hang" or "spin" ends the process, waits for ever, or computes for ever
    without giving the interpreter lock back: once, if `once` is a folder to remember it in. "crowded" has
    no memory for more than `capacity` images, "overfull" for none.
    """

    name = "checksum"
    outputs: tuple[str, ...] = ("checksum",)

    def __init__(self, once: Path | None = None, capacity: int = 1_000_000, work: int = 0) -> None:
        self.once = once
        self.capacity = capacity
        self.work = work

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        for _ in range(self.work):
            np.linalg.svd(np.ones((100, 100)))
        for prompt in prompts:
            self._suffer(prompt)
        crowded = any("crowded" in prompt for prompt in prompts) and len(images) > self.capacity
        if crowded or "overfull" in prompts:
            import torch

            raise torch.OutOfMemoryError(f"tried to allocate {len(images)} images")
        return {"checksum": checksums(images, prompts)}

    def _suffer(self, prompt: str) -> None:
        fault = next((fault for fault in ("die", "hang", "spin") if fault in prompt), None)
        if fault is None:
            return
        if self.once is not None:
            try:
                (self.once / prompt.replace(" ", "_")).touch(exist_ok=False)
            except FileExistsError:
                return
        if fault == "die":
            os._exit(1)
        if fault == "hang":
            threading.Event().wait()
        re.match(r"(a+)+$", "a" * 64 + "b")


def checksums(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
    """What `Checksum` has to answer: 24 bits, which float32 keeps."""
    pairs = zip(images, prompts, strict=True)
    values = [zlib.crc32(image.tobytes() + prompt.encode()) % 2**24 for image, prompt in pairs]
    return np.array(values, dtype=np.float32)


def checksum_scorers(once: Path | None = None, capacity: int = 1_000_000, work: int = 0) -> list[Scorer]:
    return [Checksum(once, capacity, work)]


def brightness_scorers(work: int = 0) -> list[Scorer]:
    return [Brightness(work)]


def spec(name: str, build: BuildScorers, **options: Any) -> PoolSpec:
    """A pool that asks Ray for next to nothing."""
    return PoolSpec(name, "fakes", build, replace(PoolConfig(replicas=1, cpus=0.1, gpus=0.0), **options))
