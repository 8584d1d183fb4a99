"""The exact judge of the embedded world: finds the objects in a picture and compares them with a caption.

What always holds:
- `strict` is in [0, 1]; a picture without objects scores 0; a faithful picture scores 1.
- The score is mean(facts on objects, sizes and relations) * (1 + nothing_extra) / 2 * texture, where
  `nothing_extra` loses a half for each object that was not asked for and `texture` is 1.0 or 0.8.
- Nothing is learned and nothing is random: the same picture and caption give the same verdict.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shapes.captions import COLORS, IMAGE_SIZE, SHAPES, Group, Relation, SceneSpec, parse
from shapes.render import MAX_ANGLE, relation_holds, signed_distance

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

COLOR_ONLY_CREDIT = 0.4
"""What a missing object is worth if one of its colour, not asked for otherwise, stands in for it."""
MIN_CONFIDENCE = 0.70
"""A detection counts as its shape from this overlap (intersection over union) with the ideal outline."""
SMALL_BELOW, LARGE_ABOVE = 8.6, 9.9
"""Detected radii, in pixels, that read as small and as large."""
RELATION_SLOPE = 0.6
"""A relation holds if the distance along it is at least this share of the distance across."""
WRONG_TEXTURE_FACTOR = 0.8

_MIN_AREA = 22
_MIN_CHROMA, _MIN_SATURATION = 0.15, 0.19
_HUES = {"red": 2, "green": 128, "blue": 228, "yellow": 51, "purple": 283, "cyan": 184}  # degrees, as drawn
_COLOR_NAMES = tuple(COLORS)


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


@dataclass(frozen=True)
class Fact:
    """One thing that the caption asks for, and how far the picture has it: 1 right, 0 wrong."""

    description: str
    value: float


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: the score, the facts behind it, and the objects seen."""

    strict: float
    facts: list[Fact]
    detections: list[Detection]

    @property
    def all_right(self) -> bool:
        """Whether every fact is fully right."""
        return all(fact.value == 1.0 for fact in self.facts)


def strict_score(image: NDArray[Any], caption: str) -> float:
    """`verify(image, caption).strict`."""
    return verify(image, caption).strict


def verify(image: NDArray[Any], caption: str) -> Verdict:
    """Judge a uint8 RGB picture [64, 64, 3] against a caption.

    ValueError if the picture has another shape or type, or the caption cannot be parsed.
    """
    _check(image)
    spec = parse(caption)
    foreground, detections = detect(image)
    assigned, extra = _assign(spec, detections)
    facts = [
        fact for group, found in zip(spec.groups, assigned, strict=True) for fact in _judge(group, found)
    ]
    facts += [_judge_relation(spec, relation, assigned) for relation in spec.relations]
    asked = float(np.mean([fact.value for fact in facts]))
    nothing_extra = max(0.0, 1.0 - 0.5 * len(extra))
    facts.append(Fact(_describe_extra(extra), nothing_extra))
    texture = classify_texture(image, foreground)
    texture_right = texture == spec.texture
    facts.append(
        Fact(
            f"{spec.texture} background" + (": right" if texture_right else f": it is {texture}"),
            float(texture_right),
        )
    )
    factor = 1.0 if texture_right else WRONG_TEXTURE_FACTOR
    return Verdict(asked * (0.5 + 0.5 * nothing_extra) * factor, facts, detections)


def detect(image: NDArray[np.uint8]) -> tuple[Mask, list[Detection]]:
    """Find every coloured object: the mask of coloured pixels [64, 64] and the objects."""
    foreground, color_index = _segment(image)
    detections = []
    for index, color in enumerate(_COLOR_NAMES):
        labels, _ = ndimage.label(foreground & (color_index == index))
        for label, box in enumerate(ndimage.find_objects(labels), 1):
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
    if valid.sum() < 200:
        return "plain"
    values = residual[valid]
    spread = float(values.std())
    if spread < 6.0:
        return "plain"
    changes = [_change_along(residual, valid, dy, dx) for dy, dx in ((0, 4), (4, 0), (3, 3), (3, -3))]
    if min(changes) < 0.35 * spread:
        return "striped"
    skew = float(np.mean((values - values.mean()) ** 3)) / spread**3
    return "dotted" if skew < -0.6 else "checkered"


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
_TEMPLATE_ANGLES = (-0.75 * MAX_ANGLE, 0.0, 0.75 * MAX_ANGLE)


@dataclass(frozen=True)
class _Templates:
    """Ideal shapes scaled to area 1 with the centroid at the origin, as fields that are highest inside."""

    fields: Floats  # [templates, size, size]
    shapes: tuple[str, ...]  # of each template
    root_area: dict[str, float]  # of the shape at radius 1


@lru_cache(maxsize=1)
def _templates() -> _Templates:
    """Each shape at a few angles, sharp and with the corners that an autoencoder's blur leaves."""
    unit = np.linspace(-1.6, 1.6, 401, dtype=np.float32)
    axis = np.linspace(-_TEMPLATE_REACH, _TEMPLATE_REACH, _TEMPLATE_SIZE, dtype=np.float32)
    fields, shapes, root_area = [], [], {}
    for shape in SHAPES:
        inside = signed_distance(shape, unit[None, :], unit[:, None]) < 0
        root = float(np.sqrt(inside.sum())) * (3.2 / 400)
        center_y = float(unit[np.nonzero(inside)[0]].mean())  # every shape is symmetric in x
        root_area[shape] = root
        for angle in (0.0,) if shape == "circle" else _TEMPLATE_ANGLES:
            x, y = axis[None, :] * root, axis[:, None] * root
            turned_x = x * np.cos(angle) + y * np.sin(angle)
            turned_y = y * np.cos(angle) - x * np.sin(angle) + center_y
            distance = signed_distance(shape, turned_x.astype(np.float32), turned_y.astype(np.float32))
            blur = 0.07 * _TEMPLATE_SIZE / (2 * _TEMPLATE_REACH)
            soft = ndimage.gaussian_filter((distance < 0).astype(np.float32), blur)
            fields += [-distance, soft - 1e-3 * distance]
            shapes += [shape, shape]
    return _Templates(np.stack(fields), tuple(shapes), root_area)


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
    best = int(overlap.argmax())
    shape = templates.shapes[best]
    return Detection(
        color=color,
        shape=shape,
        x=float(center_x - margin + box[1].start + 0.5),
        y=float(center_y - margin + box[0].start + 0.5),
        radius=float(np.sqrt(area)) / templates.root_area[shape],
        confidence=float(overlap[best]),
    )


@dataclass
class _Found:
    """What a group got: `exact` detections, and `stand_ins` that have its colour only."""

    exact: list[Detection]
    stand_ins: list[Detection]


def _assign(spec: SceneSpec, detections: list[Detection]) -> tuple[list[_Found], list[Detection]]:
    """Give each group its detections, right sizes and sure ones first; the second result is left over."""
    left = list(detections)
    assigned = []
    for group in spec.groups:
        exact = [seen for seen in left if _matches(seen, group)]
        exact.sort(key=lambda seen: (seen.is_size(group.spec.size), seen.confidence), reverse=True)
        assigned.append(_Found(_take(left, exact, group.count), []))
    for group, found in zip(spec.groups, assigned, strict=True):
        alike = [seen for seen in left if seen.color == group.spec.color]
        found.stand_ins = _take(left, alike, group.count - len(found.exact))
    return assigned, left


def _matches(seen: Detection, group: Group) -> bool:
    kind = group.spec
    return (seen.color, seen.shape) == (kind.color, kind.shape) and seen.confidence > MIN_CONFIDENCE


def _take(left: list[Detection], candidates: list[Detection], count: int) -> list[Detection]:
    """Move the first `count` candidates out of `left`."""
    taken = candidates[:count]
    left[:] = [seen for seen in left if not any(seen is other for other in taken)]
    return taken


def _judge(group: Group, found: _Found) -> list[Fact]:
    """One fact for each object that the group asks for, and one more where it has a size word."""
    facts = [Fact(f"{group.phrase}: there", 1.0) for _ in found.exact]
    facts += [Fact(f"{group.phrase}: a {seen.shape} instead", COLOR_ONLY_CREDIT) for seen in found.stand_ins]
    facts += [Fact(f"{group.phrase}: one is missing", 0.0) for _ in range(group.count - len(facts))]
    if group.spec.size:
        right = [seen.is_size(group.spec.size) for seen in found.exact]
        right += [False] * (group.count - len(right))
        facts += [Fact(f"{group.phrase}: {'' if ok else 'not '}{group.spec.size}", float(ok)) for ok in right]
    return facts


def _judge_relation(spec: SceneSpec, relation: Relation, assigned: list[_Found]) -> Fact:
    told = f"{spec.groups[relation.subject].phrase} {relation.kind} {spec.groups[relation.object].phrase}"
    subjects, objects = assigned[relation.subject].exact, assigned[relation.object].exact
    if not (subjects and objects):
        return Fact(f"{told}: one of them is missing", 0.0)
    dx, dy = subjects[0].x - objects[0].x, subjects[0].y - objects[0].y
    holds = bool(relation_holds(dx, dy, relation.kind, margin=0.0, slope=RELATION_SLOPE))
    return Fact(f"{told}: {'right' if holds else 'not so'}", float(holds))


def _describe_extra(extra: list[Detection]) -> str:
    if not extra:
        return "nothing extra"
    return "extra objects: " + ", ".join(f"{seen.color} {seen.shape}" for seen in extra)


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


def _check(image: NDArray[Any]) -> None:
    wanted = (IMAGE_SIZE, IMAGE_SIZE, 3)
    if image.shape != wanted:
        raise ValueError(f"image must have shape {wanted}, got {image.shape}")
    if image.dtype != np.uint8:
        bad = " with NaN or infinity" if not np.isfinite(image.astype(np.float64)).all() else ""
        raise ValueError(f"image must be uint8 in 0..255, got {image.dtype}{bad}")
