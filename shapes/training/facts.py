"""Which of a caption's facts hold in a picture, at the words that claim them: dense labels for a scorer.

Always true: a fact that a caption does not claim is NaN, and the columns of one noun are those of the
caption's group of the same number.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shapes.captions import parse
from shapes.training.text import MAX_GROUPS
from shapes.verify import Verdict

NOUN_FACTS = 2
"""Whether the noun's objects are there as told, and whether its relation to the noun before holds."""
SCENE_FACTS = 2
"""Whether there is nothing extra, and whether the background is right."""


def fact_labels(caption: str, verdict: Verdict) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Labels in [0, 1] or NaN: [MAX_GROUPS, NOUN_FACTS] of the nouns and [SCENE_FACTS] of the scene."""
    spec = parse(caption)
    values = iter([fact.value for fact in verdict.facts])
    nouns = np.full((MAX_GROUPS, NOUN_FACTS), np.nan, np.float32)
    for number, group in enumerate(spec.groups):
        asked = group.count * (2 if group.spec.size else 1)
        nouns[number, 0] = np.mean([next(values) for _ in range(asked)])
    for relation in spec.relations:
        nouns[relation.object, 1] = next(values)
    scene = np.array([next(values) for _ in range(SCENE_FACTS)], np.float32)
    assert next(values, None) is None, f"{caption!r}: facts left over in {verdict.facts}"
    return nouns, scene


def fact_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are not NaN."""
    claimed = ~labels.isnan()
    return F.binary_cross_entropy_with_logits(logits[claimed], labels[claimed])
