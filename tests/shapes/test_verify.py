"""The judge: its contract on rendered scenes, and what it says of pictures wrong in one known way."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from shapes.captions import TEXTURES, TIERS, canonical, parse, sample_spec
from shapes.detect import classify_texture, detect
from shapes.render import PlacedObject, place, render, scene_batch
from shapes.verify import Verdict, strict_score, verify

Image = NDArray[np.uint8]
PER_TIER = 60


@lru_cache
def scenes(tier: int) -> tuple[Image, list[str]]:
    return scene_batch(np.random.default_rng(100 + tier), PER_TIER, "train", [tier])


def blurred(image: Image, rng: np.random.Generator) -> Image:
    """What a mild autoencoder does: gaussian blur of 0.7 pixels and noise of 3 grey levels."""
    soft = ndimage.gaussian_filter(image.astype(float), (0.7, 0.7, 0)) + rng.normal(0, 3, image.shape)
    return np.asarray(np.clip(np.rint(soft), 0, 255), np.uint8)


def draw(objects: list[PlacedObject], texture: str = "plain", seed: int = 0) -> Image:
    return render(objects, texture, np.random.default_rng(seed))


def placed(caption: str, seed: int = 0) -> list[PlacedObject]:
    objects = place(parse(caption), np.random.default_rng(seed))
    assert objects is not None
    return objects


def wrong_facts(verdict: Verdict) -> dict[str, float]:
    return {fact.description: fact.value for fact in verdict.facts if fact.value < 1}


@pytest.mark.parametrize("tier", TIERS)
def test_faithful_pictures_score_one(tier: int) -> None:
    verdicts = [verify(image, caption) for image, caption in zip(*scenes(tier), strict=True)]
    assert np.mean([verdict.strict for verdict in verdicts]) >= 0.99
    for verdict in verdicts:
        assert verdict.all_right == (verdict.strict == 1.0)


@pytest.mark.parametrize("tier", TIERS)
def test_autoencoder_blur_is_forgiven(tier: int) -> None:
    rng = np.random.default_rng(tier)
    images, captions = scenes(tier)
    scores = [strict_score(blurred(image, rng), text) for image, text in zip(images, captions, strict=True)]
    assert np.mean(scores) >= 0.95


@pytest.mark.parametrize("tier", TIERS)
def test_another_scene_of_the_tier_scores_low(tier: int) -> None:
    images, captions = scenes(tier)
    scores = [
        strict_score(image, caption)
        for image, own, caption in zip(images, captions, captions[1:] + captions[:1], strict=True)
        if canonical(parse(own)) != canonical(parse(caption))
    ]
    assert len(scores) > PER_TIER / 2
    assert np.mean(scores) <= 0.15


def test_pictures_without_objects_score_exactly_zero() -> None:
    rng = np.random.default_rng(0)
    captions = [sample_spec(rng, tier).caption for tier in TIERS for _ in range(3)]
    empty = [np.full((64, 64, 3), level, np.uint8) for level in (0, 128, 255)]
    empty += [draw([], texture) for texture in TEXTURES]
    empty.append(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    assert {strict_score(image, caption) for image in empty for caption in captions} == {0.0}


def test_textures_are_told_apart_even_when_blurred() -> None:
    rng = np.random.default_rng(3)
    right = []
    for tier in TIERS:
        for image, caption in zip(*scenes(tier), strict=True):
            for picture in (image, blurred(image, rng)):
                foreground, _ = detect(picture)
                right.append(classify_texture(picture, foreground) == parse(caption).texture)
    assert np.mean(right) >= 0.995


def test_detections_measure_what_was_drawn() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        spec = sample_spec(rng, 4)
        objects = place(spec, rng)
        assert objects is not None
        _, detections = detect(render(objects, spec.texture, rng))
        assert len(detections) == len(objects)
        for item in objects:
            seen = min(detections, key=lambda found: np.hypot(found.x - item.x, found.y - item.y))
            assert (seen.color, seen.shape) == (item.color, item.shape)
            assert np.hypot(seen.x - item.x, seen.y - item.y) < 1
            assert seen.radius == pytest.approx(item.radius, abs=1.2)
            assert 0.7 < seen.confidence <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_dropped_object_is_missed(seed: int) -> None:
    caption = "two red circles and a blue star on a plain background"
    objects = placed(caption, seed)
    assert wrong_facts(verify(draw(objects[1:]), caption)) == {"two red circles: one is missing": 0.0}
    assert wrong_facts(verify(draw(objects[:2]), caption)) == {"a blue star: one is missing": 0.0}
    assert strict_score(draw(objects[1:]), caption) == pytest.approx(2 / 3)
    assert strict_score(draw(objects[2:]), caption) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_swapped_colors_earn_only_the_color_credit(seed: int) -> None:
    caption = "a red circle and a blue star on a plain background"
    first, second = placed(caption, seed)
    verdict = verify(draw([replace(first, color="blue"), replace(second, color="red")]), caption)
    assert wrong_facts(verdict) == {"a red circle: a star instead": 0.4, "a blue star: a circle instead": 0.4}
    assert verdict.strict == pytest.approx(0.4)
    assert not verdict.all_right


@pytest.mark.parametrize("kind", ["left of", "right of", "above", "below"])
def test_swapped_sides_break_the_relation_only(kind: str) -> None:
    caption = f"a red circle {kind} a blue star on a plain background"
    for seed in range(4):
        first, second = placed(caption, seed)
        exchanged = [
            replace(first, x=second.x, y=second.y, radius=8.0),
            replace(second, x=first.x, y=first.y, radius=8.0),
        ]
        assert verify(draw([first, second]), caption).all_right
        verdict = verify(draw(exchanged), caption)
        assert wrong_facts(verdict) == {f"a red circle {kind} a blue star: not so": 0.0}
        assert verdict.strict == pytest.approx(2 / 3)


def test_a_diagonal_is_a_relation_only_if_it_leans_that_way() -> None:
    circle = PlacedObject("red", "circle", 20.0, 20.0, 8.0)
    across = "a red circle left of a blue star on a plain background"
    down = "a red circle above a blue star on a plain background"
    flat, steep = (
        replace(circle, color="blue", shape="star", x=x, y=y) for x, y in ((52.0, 28.0), (28.0, 52.0))
    )
    assert [verify(draw([circle, flat]), text).all_right for text in (across, down)] == [True, False]
    assert [verify(draw([circle, steep]), text).all_right for text in (across, down)] == [False, True]


def test_extra_objects_cost_a_quarter_each_up_to_two() -> None:
    caption = "a red circle on a plain background"
    circle = PlacedObject("red", "circle", 15.0, 15.0, 8.0)
    extras = [
        PlacedObject("blue", "star", 48.0, 15.0, 8.0),
        PlacedObject("red", "circle", 15.0, 48.0, 8.0),
        PlacedObject("green", "cross", 48.0, 48.0, 8.0),
    ]
    verdicts = [verify(draw([circle, *extras[:count]]), caption) for count in range(4)]
    assert [verdict.strict for verdict in verdicts] == [1.0, 0.75, 0.5, 0.5]
    assert wrong_facts(verdicts[1]) == {"extra objects: blue star": 0.5}
    assert [len(verdict.detections) for verdict in verdicts] == [1, 2, 3, 4]


def test_a_wrong_background_costs_a_fifth() -> None:
    for asked in TEXTURES:
        caption = f"a red circle on a {asked} background"
        for drawn in TEXTURES:
            verdict = verify(draw(placed(caption), drawn, seed=7), caption)
            assert verdict.strict == pytest.approx(1.0 if asked == drawn else 0.8)
            assert verdict.all_right == (asked == drawn)
            if asked != drawn:
                assert wrong_facts(verdict) == {f"{asked} background: it is {drawn}": 0.0}


def test_size_words_are_judged() -> None:
    small, large = (f"a {size} green square on a plain background" for size in ("small", "large"))
    for seed in range(5):
        item = placed(small, seed)[0]
        assert verify(draw([item]), small).all_right
        assert wrong_facts(verify(draw([item]), large)) == {"a large green square: not large": 0.0}
        big = placed(large, seed)[0]
        assert wrong_facts(verify(draw([big]), small)) == {"a small green square: not small": 0.0}
        assert strict_score(draw([big]), small) == pytest.approx(0.5)


def test_the_better_of_two_candidates_is_judged() -> None:
    caption = "a small red circle on a plain background"
    both = [PlacedObject("red", "circle", 20.0, 20.0, 13.0), PlacedObject("red", "circle", 48.0, 48.0, 6.0)]
    assert wrong_facts(verify(draw(both), caption)) == {"extra objects: red circle": 0.5}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((32, 32, 3), np.uint8), "shape"),
        (np.zeros((3, 64, 64), np.uint8), "shape"),
        (np.zeros((1, 64, 64, 3), np.uint8), "shape"),
        (np.zeros((64, 64, 3), np.float32), "uint8"),
        (np.full((64, 64, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_other_pictures_are_refused(image: NDArray[np.generic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(image, "a red circle on a plain background")


def test_other_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot read the caption"):
        verify(np.zeros((64, 64, 3), np.uint8), "a photograph of a cat")
