"""The renderer against an independent geometry: matplotlib paths, supersampled, and plain arithmetic."""

import numpy as np
import pytest
from matplotlib.path import Path
from numpy.typing import NDArray

from shapes.captions import COLORS, IMAGE_SIZE, SHAPES, TEXTURES, TIERS, parse, sample_spec, split_of
from shapes.render import PlacedObject, place, render, render_scene, scene_batch, signed_distance

Floats64 = NDArray[np.float64]


def outline(shape: str) -> Floats64:
    """Corners [n, 2] of the shape at radius 1, y down, written independently of the renderer."""

    def ring(*radii: float, down: float = 0.0) -> Floats64:
        angles = -np.pi / 2 + 2 * np.pi * np.arange(len(radii)) / len(radii)
        return np.stack([np.array(radii) * np.cos(angles), np.array(radii) * np.sin(angles) + down], axis=1)

    if shape == "circle":
        return ring(*[1.0] * 180)
    if shape == "square":
        return 0.88 * np.array([(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)])
    if shape == "triangle":
        return ring(1.18, 1.18, 1.18, down=0.12)
    if shape == "star":
        return ring(*[1.22, 0.52] * 5)
    a, b = 0.34, 1.05
    upper = [(b, -a), (a, -a), (a, -b), (-a, -b), (-a, -a), (-b, -a)]
    return np.array([*upper, *((-x, -y) for x, y in upper)])


def coverage(item: PlacedObject, samples: int = 6) -> Floats64:
    """Share of each pixel [64, 64] that the object covers, by supersampling a hard mask."""
    cosine, sine = np.cos(item.angle), np.sin(item.angle)
    corners = item.radius * outline(item.shape) @ np.array([[cosine, sine], [-sine, cosine]])
    axis = (np.arange(IMAGE_SIZE * samples) + 0.5) / samples
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    mask = Path(corners + np.array([item.x, item.y])).contains_points(points)
    blocks = mask.reshape(IMAGE_SIZE, samples, IMAGE_SIZE, samples)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distance_agrees_with_a_dense_outline(shape: str) -> None:
    corners = outline(shape)
    weights = np.linspace(0, 1, 2160 // len(corners))[:, None, None]
    dense = (corners * (1 - weights) + np.roll(corners, -1, axis=0) * weights).reshape(-1, 2)
    points = np.random.default_rng(0).uniform(-1.8, 1.8, (200, 2))
    nearest = np.sqrt(((points[:, None] - dense) ** 2).sum(-1).min(axis=1))
    expected = np.where(Path(corners).contains_points(points), -nearest, nearest)
    distance = signed_distance(
        shape, points[:, :1].astype(np.float32), points[:, 1:].astype(np.float32)
    ).reshape(-1)
    np.testing.assert_allclose(distance, expected, atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_pixels_are_the_covered_ones(shape: str) -> None:
    rng = np.random.default_rng(SHAPES.index(shape))
    for color in COLORS:
        x, y = rng.uniform(20, 44, 2)
        item = PlacedObject(color, shape, x, y, rng.uniform(5.5, 14), rng.uniform(-0.12, 0.12))
        seed = int(rng.integers(1000))
        ground = render([], "plain", np.random.default_rng(seed)).astype(float)
        drawn = render([item], "plain", np.random.default_rng(seed)).astype(float)
        change = np.abs(drawn - ground).max(axis=-1)
        covered = coverage(item)
        assert (change[covered == 1] > 20).all()
        # A corner sharper than a pixel reaches at most one pixel beyond the true outline.
        near = np.lib.stride_tricks.sliding_window_view(np.pad(covered, 1), (3, 3)).max(axis=(2, 3))
        assert (change[near == 0] == 0).all()
        # Opacity read back from the picture: the change relative to that of a fully covered pixel's paint.
        opacity_area = (change > 0.5 * np.median(change[covered == 1])).sum()
        assert opacity_area == pytest.approx(covered.sum(), rel=0.2, abs=12)


def test_area_is_exact_where_the_paint_is_known() -> None:
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5
    for shape in SHAPES:
        for radius in (6.0, 9.0, 13.0):
            distance = radius * signed_distance(shape, (columns - 31.7) / radius, (rows - 32.4) / radius)
            soft = np.clip(0.5 - distance, 0, 1).sum()
            exact = coverage(PlacedObject("red", shape, 31.7, 32.4, radius), samples=8).sum()
            assert soft == pytest.approx(exact, rel=0.025)


@pytest.mark.parametrize("tier", TIERS)
def test_placed_scenes_keep_their_promises(tier: int) -> None:
    rng = np.random.default_rng(tier)
    homeless = 0
    for _ in range(100):
        spec = sample_spec(rng, tier)
        objects = place(spec, rng)
        if objects is None:
            homeless += 1
            continue
        kinds = [(group.spec, index) for index, group in enumerate(spec.groups) for _ in range(group.count)]
        assert [(o.color, o.shape) for o in objects] == [(kind.color, kind.shape) for kind, _ in kinds]
        for item, (kind, _) in zip(objects, kinds, strict=True):
            low, high = {"small": (5.5, 7.0), "large": (11.5, 14.0), "": (5.5, 10.5)}[kind.size]
            assert low <= item.radius <= high
        by_group = {index: item for item, (_, index) in zip(objects, kinds, strict=True)}
        for relation in spec.relations:
            subject, other = by_group[relation.subject], by_group[relation.object]
            gap = {
                "left of": other.x - subject.x,
                "right of": subject.x - other.x,
                "above": other.y - subject.y,
                "below": subject.y - other.y,
            }[relation.kind]
            assert gap > 6
    assert homeless <= 2


def test_objects_neither_touch_nor_leave_the_picture() -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        objects = place(sample_spec(rng, 4), rng)
        assert objects is not None
        masks = [coverage(item, samples=3) for item in objects]
        assert (np.sum(masks, axis=0) <= 1).all()
        for mask in masks:
            assert mask[[0, -1]].sum() == 0
            assert mask[:, [0, -1]].sum() == 0


@pytest.mark.parametrize(
    "caption",
    [
        "a large red square left of a cyan square on a plain background",
        "a large green square above a small red star on a plain background",
        "a red square left of a blue square and a green square right of a cyan square on a dotted background",
        "a red star above a blue star and a green star below a cyan star on a striped background",
        "two red squares and two blue triangles on a checkered background",
    ],
)
def test_crowded_scenes_always_find_room(caption: str) -> None:
    for seed in range(10):
        assert render_scene(caption, np.random.default_rng(seed)).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)


def test_the_same_generator_gives_the_same_picture() -> None:
    caption = "a red star above a blue star on a dotted background"
    first, same, other = (render_scene(caption, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.uint8
    assert (first == same).all()
    assert (first != other).any()


def test_each_texture_shows() -> None:
    for texture in TEXTURES:
        spreads = [
            render([], texture, np.random.default_rng(seed)).std(axis=(0, 1)).mean() for seed in range(20)
        ]
        steps = [
            np.abs(np.diff(render([], texture, np.random.default_rng(seed)).astype(float), axis=1)).max()
            for seed in range(20)
        ]
        assert min(spreads) > (0 if texture == "plain" else 9)
        assert max(steps) < 5 if texture == "plain" else np.median(steps) > 10


def test_unknown_texture_is_refused() -> None:
    with pytest.raises(ValueError, match="texture must be one of"):
        render([], "wooden", np.random.default_rng(0))


def test_scene_batch_stays_in_its_split_and_tiers() -> None:
    images, captions = scene_batch(np.random.default_rng(0), 24, "validation", tiers=(2, 4))
    assert images.shape == (24, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    assert {split_of(caption) for caption in captions} == {"validation"}
    assert {parse(caption).tier for caption in captions} == {2, 4}
    every = scene_batch(np.random.default_rng(0), 30, "train")[1]
    assert {parse(caption).tier for caption in every} == set(TIERS)
