"""The embedded world's language: what a caption asks for, how hard it is, and which split it belongs to.

A caption names one to four objects, at most two relations between them, and a background:
"a small red circle left of a large blue square on a plain background".

What always holds:
- `parse(spec.caption).caption == spec.caption`, and whatever `parse` cannot read is a `ValueError`.
- A scene asks for each (colour, shape) at most once, so that every judged fact has one meaning.
- The tier is `min(4, objects + relations)`: it is counted, never chosen.
- The split is a function of the scene, not of its wording: a held-out scene is never trained on.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

IMAGE_SIZE = 64
"""Height and width of every image, in pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 40),
    "green": (45, 165, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 212, 45),
    "purple": (155, 55, 195),
    "cyan": (55, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "striped", "checkered", "dotted")
RELATIONS = ("left of", "right of", "above", "below")
SIZES = ("small", "large")
TIERS = (1, 2, 3, 4)

MAX_OBJECTS = 4
MAX_SIZED_OBJECTS = 2
"""Size words are used only where at most this many objects share the canvas: the others must have room."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_COUNTS = {"a": 1, "two": 2, "three": 3, "four": 4}
_COUNT_WORDS = {count: word for word, count in _COUNTS.items()}
_PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
_SINGULARS = {plural: shape for shape, plural in _PLURALS.items()}
_MIRRORED = {"right of": "left of", "below": "above"}

VOCABULARY: list[str] = sorted(
    {"and", "on", "background", *_COUNTS, *SIZES, *COLORS, *SHAPES, *_SINGULARS, *TEXTURES}
    | {word for relation in RELATIONS for word in relation.split()}
)
"""Every word that a caption can hold."""


@dataclass(frozen=True)
class ObjectSpec:
    """One kind of object; `size` is "" where the caption does not say."""

    color: str
    shape: str
    size: str = ""

    def __post_init__(self) -> None:
        _accept("color", self.color, tuple(COLORS))
        _accept("shape", self.shape, SHAPES)
        _accept("size", self.size, ("", *SIZES))


@dataclass(frozen=True)
class Group:
    """`count` objects of one kind."""

    spec: ObjectSpec
    count: int = 1

    def __post_init__(self) -> None:
        if self.count not in _COUNT_WORDS:
            raise ValueError(f"count must be one of {tuple(_COUNT_WORDS)}, got {self.count!r}")

    @property
    def phrase(self) -> str:
        """The group as words: "two red crosses"."""
        noun = self.spec.shape if self.count == 1 else _PLURALS[self.spec.shape]
        words = (_COUNT_WORDS[self.count], self.spec.size, self.spec.color, noun)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Relation:
    """Group `subject` is `kind` group `object` (both are indices into `SceneSpec.groups`)."""

    subject: int
    kind: str
    object: int

    def __post_init__(self) -> None:
        _accept("relation", self.kind, RELATIONS)


@dataclass(frozen=True)
class SceneSpec:
    """What a caption asks for. Relations join neighbouring single objects, each object at most once."""

    groups: tuple[Group, ...]
    relations: tuple[Relation, ...]
    texture: str
    tier: int

    def __post_init__(self) -> None:
        _accept("texture", self.texture, TEXTURES)
        objects = self.object_count
        if not 1 <= objects <= MAX_OBJECTS:
            raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects, got {objects}")
        kinds = [(group.spec.color, group.spec.shape) for group in self.groups]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"a scene names each colour and shape once, got {[' '.join(k) for k in kinds]}")
        if objects > MAX_SIZED_OBJECTS and any(group.spec.size for group in self.groups):
            raise ValueError(
                f"size words are for scenes of at most {MAX_SIZED_OBJECTS} objects, got {objects} objects"
            )
        if sum(group.count for group in self.groups if group.spec.size == "large") > 1:
            raise ValueError("a scene has room for one large object, got more")
        self._check_relations()
        if self.tier != count_tier(objects, len(self.relations)):
            raise ValueError(
                f"{objects} objects with {len(self.relations)} relations are tier "
                f"{count_tier(objects, len(self.relations))}, got tier {self.tier}"
            )

    def _check_relations(self) -> None:
        related: set[int] = set()
        for relation in self.relations:
            ends = (relation.subject, relation.object)
            if relation.object != relation.subject + 1 or not 0 <= relation.subject < len(self.groups) - 1:
                raise ValueError(f"a relation joins a group and the next one, got groups {ends}")
            if any(self.groups[end].count > 1 for end in ends):
                raise ValueError(f"'{relation.kind}' relates single objects, got several")
            if related & set(ends):
                raise ValueError("an object takes part in one relation, got two")
            related |= set(ends)

    @property
    def object_count(self) -> int:
        """How many objects the scene holds."""
        return sum(group.count for group in self.groups)

    @property
    def caption(self) -> str:
        """The scene in words."""
        relation_of = {relation.subject: relation.kind for relation in self.relations}
        words = [self.groups[0].phrase]
        for index, group in enumerate(self.groups[1:]):
            words += [relation_of.get(index, "and"), group.phrase]
        return " ".join([*words, "on a", self.texture, "background"])


def count_tier(objects: int, relations: int) -> int:
    """Difficulty: every object and every relation is one more thing to get right; four or more are tier 4."""
    return min(TIERS[-1], objects + relations)


def parse(caption: str) -> SceneSpec:
    """Read a caption; case and spacing do not matter. ValueError says what is outside the grammar."""
    words = caption.lower().split()
    unknown = [word for word in words if word not in VOCABULARY]
    try:
        if unknown:
            raise ValueError(f"unknown words {unknown}; the vocabulary is {VOCABULARY}")
        if len(words) < 4 or words[-4:-2] != ["on", "a"] or words[-1] != "background":
            raise ValueError('it must end in "on a <texture> background"')
        body, texture = " ".join(words[:-4]), words[-2]
        groups: list[Group] = []
        relations: list[Relation] = []
        for clause in body.split(" and "):
            kind = next((relation for relation in RELATIONS if f" {relation} " in clause), None)
            if kind is not None:
                relations.append(Relation(len(groups), kind, len(groups) + 1))
            groups += [_parse_group(phrase) for phrase in (clause.split(f" {kind} ") if kind else [clause])]
        tier = count_tier(sum(group.count for group in groups), len(relations))
        return SceneSpec(tuple(groups), tuple(relations), texture, tier)
    except ValueError as error:
        raise ValueError(f"cannot read the caption {caption!r}: {error}") from None


def canonical(spec: SceneSpec) -> str:
    """One string a scene: the order of groups and the side a relation is told from make no difference."""
    told = []
    for relation in spec.relations:
        ends = [spec.groups[relation.subject].phrase, spec.groups[relation.object].phrase]
        if relation.kind in _MIRRORED:
            ends.reverse()
        told.append(f" {_MIRRORED.get(relation.kind, relation.kind)} ".join(ends))
    groups = sorted(group.phrase for group in spec.groups)
    return "; ".join([*groups, *sorted(told), spec.texture])


def split_of(caption: str) -> Split:
    """Where the caption's scene belongs: 15% test, 5% validation, the rest training, fixed for good."""
    return _split_of_scene(canonical(parse(caption)))


@dataclass(frozen=True)
class _Form:
    """A sentence pattern of a tier: counts of its groups, which of them begin a relation, its share."""

    weight: float
    counts: tuple[int, ...]
    related: tuple[int, ...] = ()
    sized: bool = False


_FORMS: dict[int, tuple[_Form, ...]] = {
    1: (_Form(1.0, (1,), sized=True),),
    2: (_Form(0.5, (2,)), _Form(0.5, (1, 1))),
    3: (_Form(0.2, (3,)), _Form(0.15, (2, 1)), _Form(0.65, (1, 1), related=(0,), sized=True)),
    4: (
        _Form(0.2, (4,)),
        _Form(0.25, (2, 2)),
        _Form(0.25, (1, 1, 1), related=(0,)),
        _Form(0.3, (1, 1, 1, 1), related=(0, 2)),
    ),
}


def sample_spec(rng: np.random.Generator, tier: int) -> SceneSpec:
    """Draw a scene of the tier; half of the objects have a size word where the sentence pattern allows it."""
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {TIERS}, got {tier!r}")
    forms = _FORMS[tier]
    while True:
        form = forms[int(rng.choice(len(forms), p=[form.weight for form in forms]))]
        groups = []
        for count in form.counts:
            size = _pick(rng, SIZES) if form.sized and rng.random() < 0.5 else ""
            groups.append(Group(ObjectSpec(_pick(rng, tuple(COLORS)), _pick(rng, SHAPES), size), count))
        if _admissible(groups):
            relations = tuple(Relation(i, _pick(rng, RELATIONS), i + 1) for i in form.related)
            return SceneSpec(tuple(groups), relations, _pick(rng, TEXTURES), tier)


def sample_caption(rng: np.random.Generator, tier: int, split: Split) -> str:
    """Draw a caption of the tier from one split, by rejection."""
    _accept("split", split, SPLITS)
    while True:
        spec = sample_spec(rng, tier)
        if _split_of_scene(canonical(spec)) == split:
            return spec.caption


def distinct_captions(
    seed: int, per_tier: int, split: Split, *, exhaust: bool = False
) -> list[tuple[str, int]]:
    """`per_tier` captions of different scenes for each tier, as (caption, tier), tier after tier.

    The same seed gives the same list. If a tier has fewer scenes in the split: ValueError, or with `exhaust`
    all it has.
    """
    rng = np.random.default_rng(seed)
    chosen: list[tuple[str, int]] = []
    for tier in TIERS:
        captions: dict[str, str] = {}
        repeats, wanted = 0, per_tier
        while len(captions) < wanted:
            caption = sample_caption(rng, tier, split)
            scene = canonical(parse(caption))
            repeats = repeats + 1 if scene in captions else 0
            captions.setdefault(scene, caption)
            if repeats == _SUSPICIOUS_REPEATS and (held := scene_count(tier, split)) < per_tier:
                if not exhaust:
                    raise ValueError(f"per_tier is {per_tier}, but tier {tier} has {held} {split} scenes")
                wanted = held
        chosen += [(caption, tier) for caption in captions.values()]
    return chosen


@cache
def scene_count(tier: int, split: Split) -> int:
    """How many different scenes of the tier the split holds, by listing them all (tier 4 has millions)."""
    return sum(_split_of_scene(scene) == split for scene in {canonical(spec) for spec in _every_spec(tier)})


_SUSPICIOUS_REPEATS = 100
"""After this many draws without a new scene, count whether there are enough."""


def _every_spec(tier: int) -> Iterator[SceneSpec]:
    for form in _FORMS[tier]:
        sizes = ("", *SIZES) if form.sized else ("",)
        kinds = [ObjectSpec(*parts) for parts in itertools.product(COLORS, SHAPES, sizes)]
        for specs in itertools.product(kinds, repeat=len(form.counts)):
            groups = tuple(Group(spec, count) for spec, count in zip(specs, form.counts, strict=True))
            if not _admissible(groups):
                continue
            for told in itertools.product(RELATIONS, repeat=len(form.related)):
                relations = tuple(
                    Relation(i, kind, i + 1) for i, kind in zip(form.related, told, strict=True)
                )
                for texture in TEXTURES:
                    yield SceneSpec(groups, relations, texture, tier)


def _admissible(groups: Sequence[Group]) -> bool:
    """Whether the groups name each colour and shape once and at most one large object."""
    kinds = {(group.spec.color, group.spec.shape) for group in groups}
    return (
        len(kinds) == len(groups) and sum(group.count for group in groups if group.spec.size == "large") <= 1
    )


def _split_of_scene(scene: str) -> Split:
    bucket = int(hashlib.sha256(scene.encode()).hexdigest(), 16) % 20
    return "test" if bucket < 3 else "validation" if bucket == 3 else "train"


def _parse_group(phrase: str) -> Group:
    words = phrase.split()
    if len(words) not in (3, 4):
        raise ValueError(f"'{phrase}' is not <count> [<size>] <color> <shape>")
    count = _COUNTS.get(words[0])
    if count is None:
        raise ValueError(f"'{phrase}' must begin with one of {tuple(_COUNTS)}")
    shape = words[-1] if count == 1 else _SINGULARS.get(words[-1], "")
    if shape not in SHAPES:
        raise ValueError(f"'{phrase}' must end in one of {SHAPES if count == 1 else tuple(_SINGULARS)}")
    return Group(ObjectSpec(words[-2], shape, words[1] if len(words) == 4 else ""), count)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _accept(option: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{option} must be one of {tuple(accepted)}, got {value!r}")
