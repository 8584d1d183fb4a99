"""Distances between sets against closed forms, double loops and scipy's own matrix root."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from evaluation.metrics.distances import (
    Gaussian,
    cmmd,
    diversity,
    frechet_distance,
    gaussian,
    inception_score,
    squared_mmd,
)

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def unit(rng: np.random.Generator, count: int, width: int, shift: float = 0.0) -> Floats:
    rows = rng.normal(size=(count, width)) + shift
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_frechet_of_two_gaussians_with_equal_axes_is_the_closed_form() -> None:
    """Commuting covariances: |shift|^2 + sum (sqrt(a) - sqrt(b))^2 over the common axes."""
    rng = np.random.default_rng(0)
    axes = scipy.stats.ortho_group(12, seed=1).rvs()
    a, b, shift = rng.uniform(0.1, 3, 12), rng.uniform(0.1, 3, 12), rng.normal(size=12)
    distance = frechet_distance(
        Gaussian(np.zeros(12), axes @ np.diag(a) @ axes.T), Gaussian(shift, axes @ np.diag(b) @ axes.T)
    )
    assert distance == pytest.approx(shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)


def test_frechet_of_any_two_gaussians_is_that_of_scipys_matrix_root() -> None:
    rng = np.random.default_rng(2)
    a, b = gaussian(rng.normal(size=(300, 20))), gaussian(rng.gamma(2.0, size=(300, 20)))
    root = scipy.linalg.sqrtm(a.covariance_DD @ b.covariance_DD).real
    expected = ((a.mean_D - b.mean_D) ** 2).sum() + np.trace(a.covariance_DD + b.covariance_DD - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_of_one_dimension_is_that_of_means_and_deviations() -> None:
    a, b = Gaussian(np.array([1.0]), np.array([[4.0]])), Gaussian(np.array([3.5]), np.array([[0.25]]))
    assert frechet_distance(a, b) == pytest.approx(2.5**2 + (2 - 0.5) ** 2)


def test_frechet_needs_no_more_images_than_features() -> None:
    """Ten images of 64 features have a singular covariance; equal sets are still at 0."""
    features = np.random.default_rng(3).normal(size=(10, 64)).astype(np.float32)
    assert frechet_distance(gaussian(features), gaussian(features)) == pytest.approx(0.0, abs=1e-4)
    moved = frechet_distance(gaussian(features), gaussian(features + np.float32(0.5)))
    assert moved == pytest.approx(64 * 0.25, rel=1e-4)


def test_moments_are_numpys_also_where_features_come_in_chunks() -> None:
    features = np.random.default_rng(4).normal(3.0, 2.0, (2_500, 7)).astype(np.float32)
    found = gaussian(features)
    np.testing.assert_allclose(found.mean_D, features.astype(np.float64).mean(0))
    np.testing.assert_allclose(found.covariance_DD, np.cov(features.astype(np.float64), rowvar=False))
    assert found.images == 2_500


def test_sets_without_a_distance_are_refused() -> None:
    with pytest.raises(ValueError, match="1 images; a covariance needs at least 2"):
        gaussian(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="of 2 and of 3 numbers"):
        frechet_distance(Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="empty"):
        squared_mmd(np.zeros((0, 3)), np.zeros((2, 3)))


def test_cmmd_of_equal_sets_is_zero_and_of_moved_ones_is_not() -> None:
    embeddings = unit(np.random.default_rng(5), 1_500, 16)
    assert cmmd(embeddings, embeddings) == pytest.approx(0.0, abs=1e-9)
    assert cmmd(embeddings, embeddings[::-1]) == pytest.approx(0.0, abs=1e-9)
    assert cmmd(embeddings, unit(np.random.default_rng(6), 1_500, 16, shift=0.5)) > 1.0


def test_cmmd_is_the_double_loop_over_all_pairs() -> None:
    rng = np.random.default_rng(7)
    a, b = unit(rng, 23, 8), unit(rng, 31, 8, shift=0.3)

    def kernel(x: Floats, y: Floats) -> float:
        return math.exp(-sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / (2 * 10.0**2))

    def mean(left: Floats, right: Floats) -> float:
        return sum(kernel(x, y) for x in left for y in right) / (len(left) * len(right))

    assert cmmd(a, b) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-8)


def test_a_wide_kernel_makes_of_mmd_the_distance_of_the_means() -> None:
    """For sigma far above all distances, MMD^2 is |mean_a - mean_b|^2 / sigma^2 in the first order."""
    rng = np.random.default_rng(8)
    a, b = unit(rng, 2_000, 6), unit(rng, 1_100, 6, shift=0.4)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() / 1_000**2
    assert squared_mmd(a, b, sigma=1_000) == pytest.approx(expected, rel=1e-3)


def test_inception_score_of_certain_even_classes_is_their_number() -> None:
    certain = np.full((400, 8), -60.0)
    certain[np.arange(400), np.arange(400) % 8] = 60.0
    assert inception_score(certain) == pytest.approx((8.0, 0.0), abs=1e-9)
    assert inception_score(np.zeros((400, 8))) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_inception_score_is_the_mean_divergence_from_the_marginal_of_each_split() -> None:
    logits = np.random.default_rng(9).normal(0, 2, (60, 5))
    scores = []
    for part in np.split(logits, 3):
        p = scipy.special.softmax(part, axis=1)
        scores.append(np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p])))
    value, spread = inception_score(logits.astype(np.float32), splits=3)
    assert value == pytest.approx(np.mean(scores), rel=1e-6)
    assert spread == pytest.approx(np.std(scores), rel=1e-5)
    with pytest.raises(ValueError, match="9 images in 10 splits"):
        inception_score(logits[:9])


def test_diversity_is_one_minus_the_cosine_of_a_prompts_pairs() -> None:
    angles = np.deg2rad([0, 90, 10, 10, 0, 60, 120])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    prompts = ["a", "a", "b", "b", "c", "c", "c"]
    found = diversity(embeddings, prompts)
    np.testing.assert_allclose(found[:4], [1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found[4:], [1 - (0.5 - 0.5) / 2, 0.5, 1 - (0.5 - 0.5) / 2], atol=1e-12)
    with pytest.raises(ValueError, match="one image of 'b'"):
        diversity(embeddings[:3], prompts[:3])
