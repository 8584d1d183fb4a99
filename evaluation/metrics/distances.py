"""What sets of images are measured by: Fréchet distance, Inception score, CMMD and diversity.

Always true here: pure functions of features in float64, which know nothing of images or networks. What so few
rows cannot give is an UnmeasurableError, never an approximation; nothing is regularised, so two equal sets
are at distance 0 up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from evaluation.metrics.contracts import Floats, UnmeasurableError

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_ROWS = 1024
"""Rows that are turned into float64, or compared with all others, at a time."""


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and unbiased covariance [D, D] of features; of `images` of them, or None where unknown."""

    mean_D: Floats
    covariance_DD: Floats
    images: int | None = None


def gaussian(features_ND: ArrayLike) -> Gaussian:
    """Moments of N >= 2 features."""
    features = np.asarray(features_ND)
    if len(features) < 2:
        raise UnmeasurableError(f"{len(features)} images; a covariance needs at least 2")
    mean_D = features.mean(0, dtype=np.float64)
    scatter_DD = np.zeros((features.shape[1], features.shape[1]))
    for chunk_BD in _chunks(features):
        centred_BD = chunk_BD - mean_D
        scatter_DD += centred_BD.T @ centred_BD
    return Gaussian(mean_D, scatter_DD / (len(features) - 1), len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): the squared 2-Wasserstein distance of two Gaussians.

    (Dowson and Landau, 1982; as FID on Inception features: Heusel et al., 2017, arXiv 1706.08500.) The root
    goes through eigenvalues of symmetric matrices, which also singular covariances have: no offset on the
    diagonal and no imaginary part to drop.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise UnmeasurableError(f"no distance of features of {a.mean_D.size} and of {b.mean_D.size} numbers")
    values_D, vectors_DD = eigh(a.covariance_DD)
    root_DD = (vectors_DD * np.sqrt(np.clip(values_D, 0.0, None))) @ vectors_DD.T
    product_DD = root_DD @ b.covariance_DD @ root_DD
    overlap = np.sqrt(np.clip(eigh((product_DD + product_DD.T) / 2, eigvals_only=True), 0.0, None)).sum()
    shift_D = a.mean_D - b.mean_D
    return float(shift_D @ shift_D + np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * overlap)


def inception_score(logits_NC: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))): mean and standard deviation over `splits` runs of neighbouring images.

    (Salimans et al., 2016, arXiv 1606.03498.) Bounded by the number of images in a split, so it says nothing
    of a few images.
    """
    logits = np.asarray(logits_NC)
    if len(logits) < splits:
        raise UnmeasurableError(f"{len(logits)} images in {splits} splits; a split needs at least 1")
    scores = []
    for part in np.array_split(np.arange(len(logits)), splits):
        log_BC = _log_softmax(logits[part].astype(np.float64))
        marginal_C = np.exp(log_BC).mean(0)
        divergence_B = (np.exp(log_BC) * (log_BC - np.log(np.maximum(marginal_C, 1e-300)))).sum(1)
        scores.append(np.exp(divergence_B.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def squared_mmd(a_ND: ArrayLike, b_MD: ArrayLike, sigma: float = CMMD_SIGMA) -> float:
    """Squared maximum mean discrepancy under exp(-|x - y|^2 / (2 sigma^2)), biased: pairs (x, x) count.

    (Gretton et al., 2012, equation 5.) 0 for equal sets, never below 0 but for rounding.
    """
    a, b = np.asarray(a_ND), np.asarray(b_MD)
    if not len(a) or not len(b):
        raise UnmeasurableError("an empty set of images has no distance to anything")
    return _mean_kernel(a, a, sigma) + _mean_kernel(b, b, sigma) - 2 * _mean_kernel(a, b, sigma)


def cmmd(a_ND: ArrayLike, b_MD: ArrayLike) -> float:
    """CMMD of unit CLIP embeddings: 1000 times the squared discrepancy at sigma 10.

    (Jayasumana et al., 2024, arXiv 2401.09603, as the authors' code computes it.)
    """
    return CMMD_SCALE * squared_mmd(a_ND, b_MD, CMMD_SIGMA)


def diversity(embeddings_ND: ArrayLike, groups_N: Sequence[str]) -> Floats:
    """For each image, 1 - its mean cosine to the others of its group, [N]: their mean is the diversity.

    embeddings_ND have unit length, groups_N name the prompts. Every group needs two images.
    """
    embeddings = np.asarray(embeddings_ND, dtype=np.float64)
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups_N):
        members.setdefault(group, []).append(index)
    found_N = np.empty(len(embeddings))
    for group, rows in members.items():
        if len(rows) < 2:
            raise UnmeasurableError(f"one image of {group!r}; diversity needs at least 2 of every prompt")
        cosine_BB = embeddings[rows] @ embeddings[rows].T
        found_N[rows] = 1 - (cosine_BB.sum(1) - np.diag(cosine_BB)) / (len(rows) - 1)
    return found_N


def _mean_kernel(a_ND: NDArray[np.floating], b_MD: NDArray[np.floating], sigma: float) -> float:
    squares_M = np.concatenate([(chunk_BD**2).sum(1) for chunk_BD in _chunks(b_MD)])
    total = 0.0
    for chunk_BD in _chunks(a_ND):
        for start, other_BD in zip(range(0, len(b_MD), _ROWS), _chunks(b_MD), strict=True):
            distance_BB = (chunk_BD**2).sum(1)[:, None] + squares_M[start : start + _ROWS]
            distance_BB -= 2 * chunk_BD @ other_BD.T
            total += float(np.exp(-np.maximum(distance_BB, 0.0) / (2 * sigma**2)).sum())
    return total / (len(a_ND) * len(b_MD))


def _chunks(features_ND: NDArray[np.floating]) -> Iterator[Floats]:
    for start in range(0, len(features_ND), _ROWS):
        yield features_ND[start : start + _ROWS].astype(np.float64)


def _log_softmax(logits_BC: Floats) -> Floats:
    shifted_BC = logits_BC - logits_BC.max(1, keepdims=True)
    log_BC: Floats = shifted_BC - np.log(np.exp(shifted_BC).sum(1, keepdims=True))
    return log_BC
