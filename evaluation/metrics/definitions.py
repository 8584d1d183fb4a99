"""What each metric is: which feature it is made of, how, and which way is better.

Always true here: a metric's numbers follow from features and stored costs alone, so that they can be computed
again without a model. Units are those in which the field prints the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.config import METRIC_NAMES
from evaluation.metrics.contracts import Floats, UnmeasurableError
from evaluation.metrics.distances import (
    Gaussian,
    cmmd,
    diversity,
    frechet_distance,
    gaussian,
    inception_score,
)
from evaluation.metrics.images import ImageRecord


@dataclass(frozen=True)
class Reference:
    """What a set is compared with: of Inception's features of real images the moments, of CLIP's all.

    reasons says by feature why it is not there.
    """

    inception: Gaussian | None = None
    cmmd_clip_MD: NDArray[np.floating[Any]] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


PerImage = Callable[[Floats, Sequence[ImageRecord]], Floats]
OfSet = Callable[[NDArray[np.floating[Any]], Reference], float]


@dataclass(frozen=True)
class Metric:
    """One metric: a number for each image, or for a set of one image a prompt.

    feature is what it is made of: a source's output, or a stored cost. label is for tables.
    """

    name: str
    label: str
    feature: str
    better: Literal["higher", "lower"]
    per_image: PerImage | None = None
    of_set: OfSet | None = None


def _as_it_is(values_N: Floats, records: Sequence[ImageRecord]) -> Floats:
    return values_N


def _hundredfold(cosine_N: Floats, records: Sequence[ImageRecord]) -> Floats:
    """Hessel et al., 2021 (arXiv 2104.08718), with the factor 100 of tables instead of their 2.5."""
    return 100 * np.maximum(cosine_N, 0.0)


def _diversity(embeddings_ND: Floats, records: Sequence[ImageRecord]) -> Floats:
    if not all(record.prompt for record in records):
        raise UnmeasurableError("images without prompts; diversity is among the images of a prompt")
    return diversity(embeddings_ND, [record.prompt for record in records])


def _fid(features_ND: NDArray[np.floating[Any]], reference: Reference) -> float:
    if reference.inception is None:
        raise UnmeasurableError(reference.reasons["inception"])
    return frechet_distance(gaussian(features_ND), reference.inception)


def _inception_score(logits_NC: NDArray[np.floating[Any]], reference: Reference) -> float:
    return inception_score(logits_NC)[0]


def _cmmd(embeddings_ND: NDArray[np.floating[Any]], reference: Reference) -> float:
    if reference.cmmd_clip_MD is None:
        raise UnmeasurableError(reference.reasons["cmmd_clip"])
    return cmmd(embeddings_ND, reference.cmmd_clip_MD)


_ALL = (
    Metric("clip_score", "CLIP score", "clip_score", "higher", _hundredfold),
    Metric("image_reward", "ImageReward", "image_reward_now", "higher", _as_it_is),
    Metric("hps_v2", "HPS v2", "hps", "higher", _as_it_is),
    Metric("pick_score", "PickScore", "pick_score", "higher", _as_it_is),
    Metric("aesthetic", "Aesthetic", "aesthetic", "higher", _as_it_is),
    Metric("strict", "Verifier", "strict", "higher", _as_it_is),
    Metric("dino_diversity", "DINO diversity", "dino", "higher", _diversity),
    Metric("fid", "FID", "inception", "lower", of_set=_fid),
    Metric("inception_score", "IS", "inception_logits", "higher", of_set=_inception_score),
    Metric("cmmd", "CMMD", "cmmd_clip", "lower", of_set=_cmmd),
    Metric("nfe", "NFE", "nfe", "lower", _as_it_is),
    Metric("network_evals", "Network evaluations", "network_evals", "lower", _as_it_is),
    Metric("seconds", "Seconds", "seconds", "lower", _as_it_is),
)
METRICS = {metric.name: metric for metric in _ALL}
assert tuple(METRICS) == METRIC_NAMES
