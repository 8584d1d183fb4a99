"""The language: what it reads and refuses, and that a scene stays in its split however it is worded."""

import itertools
from collections import Counter

import numpy as np
import pytest

from shapes.captions import (
    COLORS,
    RELATIONS,
    SHAPES,
    SPLITS,
    TEXTURES,
    TIERS,
    VOCABULARY,
    Group,
    ObjectSpec,
    Relation,
    SceneSpec,
    canonical,
    distinct_captions,
    parse,
    sample_caption,
    sample_spec,
    scene_count,
    split_of,
)

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def rewordings(caption: str) -> list[str]:
    """Every way to tell the same scene, made from the words alone: clauses reordered, relations turned."""
    body, ground = caption.split(" on a ")
    versions = []
    for clause in body.split(" and "):
        relation = next((kind for kind in RELATIONS if f" {kind} " in clause), None)
        if relation is None:
            versions.append([clause])
        else:
            subject, other = clause.split(f" {relation} ")
            versions.append([clause, f"{other} {OPPOSITE[relation]} {subject}"])
    orders = itertools.chain.from_iterable(
        itertools.permutations(told) for told in itertools.product(*versions)
    )
    return [" and ".join(order) + " on a " + ground for order in orders]


@pytest.mark.parametrize("tier", TIERS)
def test_every_sampled_caption_reads_back_as_the_same_scene(tier: int) -> None:
    rng = np.random.default_rng(tier)
    for _ in range(300):
        spec = sample_spec(rng, tier)
        assert parse(spec.caption) == spec
        assert spec.tier == tier == min(4, spec.object_count + len(spec.relations))
        assert set(spec.caption.split()) <= set(VOCABULARY)


@pytest.mark.parametrize(
    ("caption", "tier"),
    [
        ("a red circle on a plain background", 1),
        ("a large red circle and a small blue star on a dotted background", 2),
        ("two red crosses and a blue star on a dotted background", 3),
        ("a small red circle left of a large blue square on a plain background", 3),
        ("a red star and a blue star and a cyan star and a green star on a striped background", 4),
        ("a red star below a cyan cross and two blue circles on a checkered background", 4),
    ],
)
def test_grammar_reads(caption: str, tier: int) -> None:
    spec = parse(caption)
    assert spec.caption == caption
    assert spec.tier == tier


def test_parse_finds_the_parts() -> None:
    spec = parse("Two red crosses and a blue star  above a green square on a DOTTED background")
    assert spec == SceneSpec(
        groups=(
            Group(ObjectSpec("red", "cross"), 2),
            Group(ObjectSpec("blue", "star"), 1),
            Group(ObjectSpec("green", "square"), 1),
        ),
        relations=(Relation(1, "above", 2),),
        texture="dotted",
        tier=4,
    )


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("", "background"),
        ("a red circle", "background"),
        ("a red circle on a wooden background", "wooden"),
        ("a pink circle on a plain background", "pink"),
        ("a red circle on a red background", "texture"),
        ("a circle on a plain background", "'a circle'"),
        ("a red red circle on a plain background", "size"),
        ("red circle on a plain background", "'red circle'"),
        ("a red circles on a plain background", "'a red circles'"),
        ("two red circle on a plain background", "'two red circle'"),
        ("small a red circle on a plain background", "begin with"),
        ("a red circle and a red circle on a plain background", "once"),
        ("three red circles and two blue stars on a plain background", "5"),
        ("two red circles left of a blue star on a plain background", "several"),
        ("a red circle left of a blue star above a cyan star on a plain background", "star above"),
        ("a large red circle and a large blue star on a plain background", "large"),
        ("three small red circles on a plain background", "size words"),
        ("a red circle and on a plain background", "circle and"),
    ],
)
def test_captions_outside_the_grammar_are_refused_by_name(caption: str, named: str) -> None:
    with pytest.raises(ValueError, match="cannot read the caption") as error:
        parse(caption)
    assert named in str(error.value).replace(repr(caption), "", 1)


def test_specs_check_themselves() -> None:
    red, blue = Group(ObjectSpec("red", "star")), Group(ObjectSpec("blue", "star"))
    with pytest.raises(ValueError, match="are tier 3, got tier 2"):
        SceneSpec((red, blue), (Relation(0, "above", 1),), "plain", 2)
    with pytest.raises(ValueError, match="and the next one"):
        SceneSpec((red, blue), (Relation(1, "above", 0),), "plain", 3)
    with pytest.raises(ValueError, match="one relation"):
        SceneSpec((red, blue), (Relation(0, "above", 1), Relation(0, "left of", 1)), "plain", 4)
    with pytest.raises(ValueError, match="count"):
        Group(ObjectSpec("red", "star"), 5)


def test_no_rewording_moves_a_scene_to_another_split() -> None:
    rng = np.random.default_rng(0)
    several = 0
    for index in range(300):
        caption = sample_spec(rng, TIERS[index % 4]).caption
        told = rewordings(caption)
        several += len(set(told)) > 1
        assert {canonical(parse(version)) for version in told} == {canonical(parse(caption))}
        assert {split_of(version) for version in told} == {split_of(caption)}
    assert several > 100


def test_canonical_tells_different_scenes_apart() -> None:
    scenes = [
        "a red circle left of a blue star on a plain background",
        "a red circle right of a blue star on a plain background",
        "a red circle above a blue star on a plain background",
        "a red circle and a blue star on a plain background",
        "a small red circle and a blue star on a plain background",
        "two red circles and a blue star on a plain background",
        "a red circle and a blue star on a dotted background",
        "a blue circle and a red star on a plain background",
    ]
    assert len({canonical(parse(scene)) for scene in scenes}) == len(scenes)


def test_scene_counts_match_arithmetic() -> None:
    kinds = len(COLORS) * len(SHAPES)
    by_tier = {
        1: kinds * 3 * len(TEXTURES),
        2: (kinds + kinds * (kinds - 1) // 2) * len(TEXTURES),
    }
    for tier, scenes in by_tier.items():
        assert sum(scene_count(tier, split) for split in SPLITS) == scenes


def test_splits_have_their_shares() -> None:
    rng = np.random.default_rng(1)
    drawn = Counter(split_of(sample_spec(rng, 4).caption) for _ in range(1000))
    assert drawn["test"] / 1000 == pytest.approx(0.15, abs=0.04)
    assert drawn["validation"] / 1000 == pytest.approx(0.05, abs=0.025)


def test_sampling_respects_the_split() -> None:
    rng = np.random.default_rng(2)
    for split, tier in itertools.product(SPLITS, TIERS):
        assert all(split_of(sample_caption(rng, tier, split)) == split for _ in range(20))
    with pytest.raises(ValueError, match="split must be one of"):
        sample_caption(rng, 1, "dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tier must be one of"):
        sample_spec(rng, 5)


def test_distinct_captions_are_distinct_scenes_of_each_tier() -> None:
    chosen = distinct_captions(seed=0, per_tier=30, split="test")
    assert chosen == distinct_captions(seed=0, per_tier=30, split="test")
    assert chosen != distinct_captions(seed=1, per_tier=30, split="test")
    assert Counter(tier for _, tier in chosen) == dict.fromkeys(TIERS, 30)
    assert len({canonical(parse(caption)) for caption, _ in chosen}) == len(chosen)
    for caption, tier in chosen:
        assert parse(caption).tier == tier
        assert split_of(caption) == "test"


def test_asking_for_more_captions_than_there_are_says_how_many() -> None:
    held = scene_count(1, "validation")
    with pytest.raises(ValueError, match=f"tier 1 has {held} validation scenes"):
        distinct_captions(seed=0, per_tier=held + 1, split="validation")
    tier_one = [caption for caption, tier in distinct_captions(0, held, "validation") if tier == 1]
    assert len(set(tier_one)) == held
