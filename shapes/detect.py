"""Finds the coloured objects of a picture and names its background, by measurement alone.

What always holds:
- Nothing is learned and nothing is random.
- Every object is compared with the ideal outlines of the renderer's own geometry, at equal area and
  centroid; so a detection has a colour, a shape, a size and a confidence whatever the picture is.
- A mild blur, as an autoencoder leaves it, changes neither shapes nor sizes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shapes.captions import COLORS, IMAGE_SIZE, SHAPES
from shapes.render import MAX_ANGLE, signed_distance

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

SMALL_BELOW, LARGE_ABOVE = 8.6, 9.9
"""Detected radii, in pixels, that read as small and as large (soft edges add up to 1 to the drawn radius)."""

_MIN_AREA = 22
_MIN_CHROMA, _MIN_SATURATION = 0.15, 0.19
_HUES = {"red": 2, "green": 128, "blue": 228, "yellow": 51, "purple": 283, "cyan": 184}  # degrees, as drawn
_COLOR_NAMES = tuple(COLORS)

# Texture: the spread below which a background is plain, the share of the spread below which a direction
# counts as unchanging, and the skewness below which it is dots. Each lies midway between the values that
# rendered pictures of the two sides show.
_PLAIN_SPREAD, _STRIPE_CHANGE, _DOT_SKEW = 6.0, 0.75, -0.36
_TEXTURE_STEPS = ((0, 4), (4, 0), (3, 3), (3, -3))
_MIN_BACKGROUND = 200


@dataclass(frozen=True)
class Detection:
    """An object found in a picture; positions and radius in pixels, confidence is an overlap in [0, 1]."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    confidence: float

    def is_size(self, size: str) -> bool:
        """Whether the radius reads as the size word ("" fits any)."""
        if size == "small":
            return self.radius < SMALL_BELOW
        return size == "" or self.radius > LARGE_ABOVE


def detect(image: NDArray[np.uint8]) -> tuple[Mask, list[Detection]]:
    """Find every coloured object: the mask of coloured pixels [64, 64] and the objects."""
    foreground, color_index = _segment(image)
    detections = []
    for index, color in enumerate(_COLOR_NAMES):
        labels, _ = ndimage.label(foreground & (color_index == index))
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            if labels[box].size < _MIN_AREA:  # most of a noisy picture's components: no need to look closer
                continue
            component = ndimage.binary_fill_holes(labels[box] == label)
            if component.sum() >= _MIN_AREA:
                detections.append(_recognise(component, box, color))
    return foreground, detections


def classify_texture(image: NDArray[np.uint8], foreground: Mask) -> str:
    """Name the background's texture from the pixels that no object covers.

    Plain is flat once a linear ramp is taken off; stripes do not change along one of four directions;
    dots are dark and sparse, so most of their pixels lie above the mean.
    """
    residual, valid = _detrended(image, foreground)
    if valid.sum() < _MIN_BACKGROUND:
        return "plain"
    values = residual[valid]
    spread = float(values.std())
    if spread < _PLAIN_SPREAD:
        return "plain"
    changes = [_change_along(residual, valid, dy, dx) for dy, dx in _TEXTURE_STEPS]
    if min(changes) < _STRIPE_CHANGE * spread:
        return "striped"
    skew = float(np.mean((values - values.mean()) ** 3)) / spread**3
    return "dotted" if skew < _DOT_SKEW else "checkered"


def _segment(image: NDArray[np.uint8]) -> tuple[Mask, NDArray[np.intp]]:
    """Coloured pixels, and the index of the nearest colour name for each pixel."""
    pixels = image.astype(np.float32) / 255
    red, green, blue = np.moveaxis(pixels, -1, 0)
    highest = pixels.max(axis=-1)
    chroma = highest - pixels.min(axis=-1)
    safe = chroma + 1e-6
    hue = 60 * np.where(
        highest == red,
        ((green - blue) / safe) % 6,
        np.where(highest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    foreground = (chroma > _MIN_CHROMA) & (chroma > _MIN_SATURATION * highest)
    centers = np.array([_HUES[color] for color in _COLOR_NAMES], np.float32)
    apart = np.abs((hue[..., None] - centers + 180) % 360 - 180)
    return foreground, apart.argmin(axis=-1)


_TEMPLATE_SIZE = 192
_TEMPLATE_REACH = 1.6  # in units of the square root of the area
_CORNER_BLUR, _SOFT_HANDICAP = 0.12, 0.02
_TEMPLATE_ANGLES = (-0.75 * MAX_ANGLE, 0.0, 0.75 * MAX_ANGLE)


@dataclass(frozen=True)
class _Templates:
    """Ideal shapes scaled to area 1 with the centroid at the origin, as fields that are highest inside."""

    fields: Floats  # [templates, size, size]
    handicaps: Floats  # [templates], taken off the overlap: sharp outlines win ties
    shapes: tuple[str, ...]  # of each template
    root_area: dict[str, float]  # of the shape at radius 1
    center_y: dict[str, float]  # of the shape at radius 1: its centroid, below its centre


@lru_cache(maxsize=1)
def _templates() -> _Templates:
    """Each shape at a few angles, sharp and with the corners that an autoencoder's blur leaves."""
    unit = np.linspace(-1.6, 1.6, 401, dtype=np.float32)
    axis = np.linspace(-_TEMPLATE_REACH, _TEMPLATE_REACH, _TEMPLATE_SIZE, dtype=np.float32)
    fields, handicaps, shapes, root_area, center_y = [], [], [], {}, {}
    for shape in SHAPES:
        inside = signed_distance(shape, unit[None, :], unit[:, None]) < 0
        root = float(np.sqrt(inside.sum())) * (3.2 / 400)
        root_area[shape] = root
        center_y[shape] = float(unit[np.nonzero(inside)[0]].mean())  # every shape is symmetric in x
        for angle in (0.0,) if shape == "circle" else _TEMPLATE_ANGLES:
            x, y = axis[None, :] * root, axis[:, None] * root
            turned_x = x * np.cos(angle) + y * np.sin(angle)
            turned_y = y * np.cos(angle) - x * np.sin(angle) + center_y[shape]
            distance = signed_distance(shape, turned_x.astype(np.float32), turned_y.astype(np.float32))
            blur = _CORNER_BLUR * _TEMPLATE_SIZE / (2 * _TEMPLATE_REACH)
            soft = ndimage.gaussian_filter((distance < 0).astype(np.float32), blur)
            fields += [-distance, soft - 1e-3 * distance]
            handicaps += [0.0, _SOFT_HANDICAP]
            shapes += [shape, shape]
    return _Templates(np.stack(fields), np.array(handicaps, np.float32), tuple(shapes), root_area, center_y)


def _recognise(component: Mask, box: tuple[slice, slice], color: str) -> Detection:
    """The shape whose outline of the same area and centroid overlaps the component best."""
    templates = _templates()
    margin = 4
    padded = np.pad(component, margin)
    area = int(padded.sum())
    rows, columns = np.nonzero(padded)
    center_y, center_x = rows.mean(), columns.mean()
    steps_per_pixel = (_TEMPLATE_SIZE - 1) / (2 * _TEMPLATE_REACH) / np.sqrt(area)
    index_y, index_x = (
        np.clip(
            np.rint((np.arange(length) - center) * steps_per_pixel + (_TEMPLATE_SIZE - 1) / 2),
            0,
            _TEMPLATE_SIZE - 1,
        ).astype(np.intp)
        for length, center in zip(padded.shape, (center_y, center_x), strict=True)
    )
    fields = templates.fields[:, index_y[:, None], index_x[None, :]].reshape(len(templates.shapes), -1)
    thresholds = np.partition(fields, -area, axis=1)[:, -area]
    ideal = fields >= thresholds[:, None]
    shared = ideal @ padded.ravel().astype(np.float32)
    overlap = shared / (ideal.sum(axis=1) + area - shared)
    best = int((overlap - templates.handicaps).argmax())
    shape = templates.shapes[best]
    radius = float(np.sqrt(area)) / templates.root_area[shape]
    return Detection(
        color=color,
        shape=shape,
        x=float(center_x - margin + box[1].start + 0.5),
        y=float(center_y - margin + box[0].start + 0.5) - templates.center_y[shape] * radius,
        radius=radius,
        confidence=float(overlap[best]),
    )


def _detrended(image: NDArray[np.uint8], foreground: Mask) -> tuple[Floats, Mask]:
    """Grey levels without their linear ramp [64, 64], and which of them are clear of objects."""
    grey = image.mean(axis=-1, dtype=np.float32)
    valid = ~ndimage.binary_dilation(foreground, iterations=3)
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    design = np.stack([np.ones(grey.size), rows.ravel(), columns.ravel()], axis=1).astype(np.float32)
    inside = design[valid.ravel()]
    if len(inside) < 3:
        return np.zeros_like(grey), np.zeros_like(valid)
    plane = np.linalg.solve(inside.T @ inside + 1e-3 * np.eye(3), inside.T @ grey[valid])
    return (grey - (design @ plane).reshape(grey.shape)).astype(np.float32), valid


def _change_along(residual: Floats, valid: Mask, dy: int, dx: int) -> float:
    """Root mean square change of the residual from each pixel to the one at (dy, dx)."""
    here, there = _shifted_pair(residual, dy, dx)
    both = np.logical_and(*_shifted_pair(valid, dy, dx))
    return float(np.sqrt(np.mean((there - here)[both] ** 2))) if both.any() else np.inf


def _shifted_pair(field: NDArray[Any], dy: int, dx: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = field.shape[0] - dy
    if dx >= 0:
        return field[:rows, : field.shape[1] - dx], field[dy:, dx:]
    return field[:rows, -dx:], field[dy:, :dx]
