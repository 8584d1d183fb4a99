"""Training scenes on disk: images, captions and coarse object maps, in chunks.

Always true: chunk i depends on its number alone, holds training captions only, and is written whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shapes.captions import COLORS, IMAGE_SIZE, SHAPES, parse, sample_caption
from shapes.render import PlacedObject, place, render
from shapes.training.files import save_npz

CHUNK = 4096
MAP_SIZE = 8
TIER_SHARES = (0.15, 0.25, 0.3, 0.3)
"""How often each complexity tier is drawn: the larger tiers have more to learn."""


@dataclass(frozen=True)
class Scenes:
    """N scenes: images uint8 [N, 64, 64, 3], captions, and class maps uint8 [N, 8, 8] (0 is background)."""

    images: NDArray[np.uint8]
    captions: list[str]
    shape_map: NDArray[np.uint8]
    color_map: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)


def object_maps(objects: list[PlacedObject]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Shape and colour (1-based) of the object that covers each cell's centre, 0 where none does."""
    cell = IMAGE_SIZE / MAP_SIZE
    y, x = (np.mgrid[0:MAP_SIZE, 0:MAP_SIZE] + 0.5) * cell
    shapes = np.zeros((MAP_SIZE, MAP_SIZE), np.uint8)
    colors = np.zeros_like(shapes)
    names = list(COLORS)
    for item in objects:
        inside = np.hypot(x - item.x, y - item.y) <= max(item.radius, 0.6 * cell)
        shapes[inside] = 1 + SHAPES.index(item.shape)
        colors[inside] = 1 + names.index(item.color)
    return shapes, colors


def write_chunk(path: Path, number: int) -> None:
    """Render chunk `number` (4,096 training scenes) into an .npz file."""
    rng = np.random.default_rng([20, number])
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    shape_maps: list[NDArray[np.uint8]] = []
    color_maps: list[NDArray[np.uint8]] = []
    while len(images) < CHUNK:
        caption = sample_caption(rng, 1 + int(rng.choice(4, p=TIER_SHARES)), "train")
        spec = parse(caption)
        objects = place(spec, rng)
        if objects is None:
            continue
        images.append(render(objects, spec.texture, rng))
        captions.append(caption)
        shapes, colors = object_maps(objects)
        shape_maps.append(shapes)
        color_maps.append(colors)
    save_npz(
        path,
        images=np.stack(images),
        captions=np.array(captions),
        shape_map=np.stack(shape_maps),
        color_map=np.stack(color_maps),
    )


def load_scenes(folder: Path, numbers: range) -> Scenes:
    """Chunks `numbers` of `folder`, rendering those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number in numbers:
        path = folder / f"scenes-{number:03d}.npz"
        if not path.exists():
            write_chunk(path, number)
        with np.load(path, allow_pickle=False) as file:
            parts.append({key: file[key] for key in file.files})
    return Scenes(
        images=np.concatenate([part["images"] for part in parts]),
        captions=[str(caption) for part in parts for caption in part["captions"]],
        shape_map=np.concatenate([part["shape_map"] for part in parts]),
        color_map=np.concatenate([part["color_map"] for part in parts]),
    )
