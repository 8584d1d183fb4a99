"""Draws the embedded world: places the objects that a caption asks for and renders them, anti-aliased.

What always holds:
- The drawn scene satisfies its caption with a margin: sizes and relations are never borderline,
  objects never touch each other or the image's edge.
- The same generator state gives the same picture; nothing else is random.
- Positions are in pixels, x to the right and y down, pixel (0, 0) covering [0, 1) x [0, 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shapes.captions import (
    COLORS,
    IMAGE_SIZE,
    TEXTURES,
    TIERS,
    SceneSpec,
    Split,
    parse,
    sample_caption,
)

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

RADIUS_RANGES: dict[str, tuple[float, float]] = {"small": (5.5, 7.0), "": (7.5, 10.5), "large": (11.5, 14.0)}
"""Radius in pixels for each size word; without one the size is between the two."""

MAX_ANGLE = 0.12
"""Objects are turned by up to this many radians either way."""

RELATION_MARGIN = 6.0
"""A drawn relation holds by at least this many pixels ..."""
RELATION_SLOPE = 0.85
"""... and its direction dominates: the distance along it is at least this share of the distance across."""

_MIN_RADIUS = 5.5
_SHRINK_ROUNDS = (1.0, 1.0, 0.93, 0.87, 0.8)

_CENTERS = (np.arange(IMAGE_SIZE) + 0.5).astype(np.float32)


@dataclass(frozen=True)
class PlacedObject:
    """An object with its centre, radius (pixels) and angle (radians, clockwise on the screen)."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float = 0.0


def _star_vertices() -> list[tuple[float, float]]:
    reach = [1.22 if corner % 2 == 0 else 0.52 for corner in range(10)]
    turns = [corner * np.pi / 5 for corner in range(10)]
    return [(r * np.sin(t), -r * np.cos(t)) for r, t in zip(reach, turns, strict=True)]


def _cross_vertices() -> list[tuple[float, float]]:
    arm, reach = 0.34, 1.05
    quarter = [(-arm, -reach), (arm, -reach), (arm, -arm)]
    corners = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        corners += quarter
    return corners


POLYGONS: dict[str, Floats] = {
    "square": np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)], np.float32),
    "triangle": np.array(
        [(1.18 * np.sin(t), 0.12 - 1.18 * np.cos(t)) for t in (0, 2 * np.pi / 3, 4 * np.pi / 3)], np.float32
    ),
    "star": np.array(_star_vertices(), np.float32),
    "cross": np.array(_cross_vertices(), np.float32),
}
"""Corners of each shape at radius 1 and angle 0; the circle has none."""


def signed_distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Distance from points to the outline of a shape of radius 1 at the origin, negative inside.

    x and y broadcast against each other; the result has their common shape.
    """
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - 1, np.float32)
    # Distance to the nearest edge; a ray to the left crosses the outline an odd number of times inside.
    start = POLYGONS[shape][:, :, None, None]
    edge = np.roll(start, -1, axis=0) - start
    from_start_x, from_start_y = x - start[:, 0], y - start[:, 1]
    edge_x, edge_y = edge[:, 0], edge[:, 1]
    along = (from_start_x * edge_x + from_start_y * edge_y) / (edge_x**2 + edge_y**2)
    along = np.clip(along, 0, 1)
    squared = (from_start_x - along * edge_x) ** 2 + (from_start_y - along * edge_y) ** 2
    spans = (from_start_y < 0) != (from_start_y < edge_y)
    right_of_edge = (from_start_x * edge_y - from_start_y * edge_x) * np.sign(edge_y) > 0
    inside = np.logical_xor.reduce(spans & right_of_edge, axis=0)
    distance = np.sqrt(squared.min(axis=0))
    return np.asarray(np.where(inside, -distance, distance), np.float32)


def relation_holds(
    dx: NDArray[np.floating] | float, dy: NDArray[np.floating] | float, kind: str, margin: float, slope: float
) -> NDArray[np.bool_]:
    """Whether an object at (dx, dy) from another is `kind` it: by `margin` pixels, along more than across."""
    along, across = (dx, dy) if kind in ("left of", "right of") else (dy, dx)
    if kind in ("left of", "above"):
        along = -along
    return np.asarray((along > margin) & (along >= slope * np.abs(across)))


def place(spec: SceneSpec, rng: np.random.Generator) -> list[PlacedObject] | None:
    """Find room for every object, in the order of the groups; None if thousands of tries found none.

    Objects without a size word shrink a little when room is short.
    """
    kinds = [group.spec for group in spec.groups for _ in range(group.count)]
    first = np.cumsum([0, *(group.count for group in spec.groups)])
    upper = np.triu_indices(len(kinds), 1)
    low, high = np.array([RADIUS_RANGES[kind.size] for kind in kinds]).T
    may_shrink = np.array([kind.size == "" for kind in kinds])
    layouts = 4 ** (1 + len(kinds))  # tried at once: each further object makes a fit about four times rarer
    for shrink in _SHRINK_ROUNDS:
        radius = rng.uniform(low, high, (layouts, len(kinds)))
        radius = np.maximum(np.where(may_shrink, radius * shrink, radius), _MIN_RADIUS)
        reach = radius * 1.2 + 1
        x, y = rng.uniform(reach, IMAGE_SIZE - reach, (2, *reach.shape))
        dx, dy = x[:, :, None] - x[:, None, :], y[:, :, None] - y[:, None, :]
        apart = np.hypot(dx, dy) > reach[:, :, None] + reach[:, None, :]
        good = apart[:, upper[0], upper[1]].all(axis=1)
        for relation in spec.relations:
            pair = (slice(None), first[relation.subject], first[relation.object])
            good &= relation_holds(dx[pair], dy[pair], relation.kind, RELATION_MARGIN, RELATION_SLOPE)
        if good.any():
            best = int(good.argmax())
            angles = rng.uniform(-MAX_ANGLE, MAX_ANGLE, len(kinds))
            return [
                PlacedObject(
                    kind.color, kind.shape, *map(float, (x[best, i], y[best, i], radius[best, i], angles[i]))
                )
                for i, kind in enumerate(kinds)
            ]
    return None


def render(objects: Sequence[PlacedObject], texture: str, rng: np.random.Generator) -> Image:
    """Draw the objects over a grey textured background: uint8 RGB [64, 64, 3]."""
    image = _background(texture, rng)
    for item in objects:
        _draw(image, item, rng)
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def render_scene(caption: str, rng: np.random.Generator) -> Image:
    """Draw one picture of the caption: uint8 RGB [64, 64, 3]; ValueError if the caption has no reading."""
    spec = parse(caption)
    for _ in range(50):
        objects = place(spec, rng)
        if objects is not None:
            return render(objects, spec.texture, rng)
    raise ValueError(f"no room for {caption!r} on {IMAGE_SIZE} x {IMAGE_SIZE} pixels")


def scene_batch(
    rng: np.random.Generator, n: int, split: Split, tiers: Sequence[int] | None = None
) -> tuple[Image, list[str]]:
    """`n` pictures, uint8 [n, 64, 64, 3], with their captions; the tier of each is drawn from `tiers`."""
    choices = tuple(tiers) if tiers is not None else TIERS
    captions = [sample_caption(rng, choices[int(rng.integers(len(choices)))], split) for _ in range(n)]
    images = np.empty((n, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for image, caption in zip(images, captions, strict=True):
        image[:] = render_scene(caption, rng)
    return images, captions


def _background(texture: str, rng: np.random.Generator) -> Floats:
    """A grey ramp with the texture on it and a faint tint, float [64, 64, 3]."""
    if texture not in TEXTURES:
        raise ValueError(f"texture must be one of {TEXTURES}, got {texture!r}")
    x, y = _CENTERS[None, :], _CENTERS[:, None]
    begin, end = rng.uniform(120, 235, 2)
    direction = rng.uniform(0, 2 * np.pi)
    half = IMAGE_SIZE / 2
    ramp = ((x - half) * np.cos(direction) + (y - half) * np.sin(direction)) / IMAGE_SIZE + 0.5
    grey = begin + (end - begin) * ramp
    period, contrast = rng.uniform(7, 9.5), rng.uniform(22, 34)
    shift_x, shift_y = rng.uniform(0, period, 2)
    if texture == "striped":
        across = rng.choice([0, np.pi / 4, np.pi / 2, 3 * np.pi / 4])
        wave = np.sin(2 * np.pi * (x * np.cos(across) + y * np.sin(across) + shift_x) / period)
        grey = grey + contrast * np.clip(2.2 * wave, -1, 1)
    elif texture == "checkered":
        wave = np.sin(np.pi * (x + shift_x) / period) * np.sin(np.pi * (y + shift_y) / period)
        grey = grey + contrast * np.clip(2.5 * wave, -1, 1)
    elif texture == "dotted":
        to_dot_x, to_dot_y = (x + shift_x) % period - period / 2, (y + shift_y) % period - period / 2
        grey = grey - 1.6 * contrast * np.clip(2.8 - np.hypot(to_dot_x, to_dot_y), 0, 1)
    return np.asarray(np.clip(grey[..., None] + rng.uniform(-7, 7, 3), 0, 255), np.float32)


def _draw(image: Floats, item: PlacedObject, rng: np.random.Generator) -> None:
    """Blend one object into the float image, in place."""
    color = np.array(COLORS[item.color], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    reach = 1.3 * item.radius + 2
    columns, rows = (
        slice(max(int(center - reach), 0), min(int(np.ceil(center + reach)), IMAGE_SIZE))
        for center in (item.x, item.y)
    )
    x, y = _CENTERS[columns][None, :] - item.x, _CENTERS[rows][:, None] - item.y
    cosine, sine = np.cos(item.angle) / item.radius, np.sin(item.angle) / item.radius
    unit_x, unit_y = (x * cosine + y * sine).astype(np.float32), (y * cosine - x * sine).astype(np.float32)
    distance = signed_distance(item.shape, unit_x, unit_y) * np.float32(item.radius)
    opacity = np.clip(0.5 - distance, 0, 1)[..., None]
    outline = 0.38 * np.clip(1.6 - np.abs(distance + 1), 0, 1)[..., None]
    light = 1 - 0.10 * (x + y)[..., None] / (1.5 * item.radius)  # the light comes from the top left
    paint = np.clip(color * light, 0, 255) * (1 - outline)
    image[rows, columns] += opacity * (paint - image[rows, columns])
