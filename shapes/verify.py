"""The exact judge of the embedded world: compares what a picture shows with what its caption asks for.

What always holds:
- `strict` is in [0, 1]; a picture without objects scores 0; a faithful picture scores 1.
- The score is mean(facts on objects, sizes and relations) * (1 + nothing_extra) / 2 * texture, where
  `nothing_extra` loses a half for each object that was not asked for and `texture` is 1.0 or 0.8.
- The same picture and caption give the same verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shapes.captions import IMAGE_SIZE, Group, Relation, SceneSpec, parse
from shapes.detect import Detection, classify_texture, detect
from shapes.render import relation_holds

COLOR_ONLY_CREDIT = 0.4
"""What a missing object is worth if one of its colour, not asked for otherwise, stands in for it."""
MIN_CONFIDENCE = 0.70
"""A detection counts as its shape from this overlap (intersection over union) with the ideal outline."""
RELATION_SLOPE = 0.6
"""A relation holds if the distance along it is at least this share of the distance across."""
WRONG_TEXTURE_FACTOR = 0.8


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
    return verdicts(image, [caption])[0]


def verdicts(image: NDArray[Any], captions: Sequence[str]) -> list[Verdict]:
    """`verify` against several captions: what is seen in the picture is found once."""
    _check(image)
    foreground, detections = detect(image)
    texture = classify_texture(image, foreground)
    return [_verdict(parse(caption), detections, texture) for caption in captions]


def _verdict(spec: SceneSpec, detections: list[Detection], texture: str) -> Verdict:
    assigned, extra = _assign(spec, detections)
    facts = [
        fact for group, found in zip(spec.groups, assigned, strict=True) for fact in _judge(group, found)
    ]
    facts += [_judge_relation(spec, relation, assigned) for relation in spec.relations]
    asked = float(np.mean([fact.value for fact in facts]))
    nothing_extra = max(0.0, 1.0 - 0.5 * len(extra))
    facts.append(Fact(_describe_extra(extra), nothing_extra))
    texture_right = texture == spec.texture
    facts.append(
        Fact(
            f"{spec.texture} background" + (": right" if texture_right else f": it is {texture}"),
            float(texture_right),
        )
    )
    factor = 1.0 if texture_right else WRONG_TEXTURE_FACTOR
    return Verdict(asked * (0.5 + 0.5 * nothing_extra) * factor, facts, detections)


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


def _check(image: NDArray[Any]) -> None:
    wanted = (IMAGE_SIZE, IMAGE_SIZE, 3)
    if image.shape != wanted:
        raise ValueError(f"image must have shape {wanted}, got {image.shape}")
    if image.dtype != np.uint8:
        bad = " with NaN or infinity" if not np.isfinite(image.astype(np.float64)).all() else ""
        raise ValueError(f"image must be uint8 in 0..255, got {image.dtype}{bad}")
