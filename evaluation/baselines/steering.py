"""Feynman-Kac steering (Singhal et al. 2025, arXiv 2501.06848): particles that score well are copied.

K particles are denoised together by a stochastic sampler (DDIM with eta = 1). After 20, 40, 60 and 80% of the
steps each is replaced by one drawn in proportion to exp(lambda * m), where m is the highest score that any of
its clean predictions had (the paper's MAX potential, and its lambda). The best scored particle is returned.

Always true here: with one particle it is the stochastic sampler itself, with the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest
from actors.engine import Engine, Episode
from evaluation.baselines.search import Denoise, Plan, Score, Scores, branch, derived_seed, go_on

STRENGTH = 10.0
"""lambda."""
RESAMPLED_AFTER = (0.2, 0.4, 0.6, 0.8)
"""Shares of the steps."""


@dataclass(frozen=True)
class FeynmanKac:
    """K particles an image."""

    particles: int
    strength: float = STRENGTH

    @property
    def width(self) -> int:
        """All particles are denoised together."""
        return self.particles

    def plan(self, engine: Engine, request: EpisodeRequest) -> Plan:
        """K * N denoiser calls, K scores at each resampling and at the end."""
        num_steps = len(engine.schedule)
        particles = engine.begin(
            [replace(request, seed=_particle_seed(request, number)) for number in range(self.particles)]
        )
        highest_K = np.full(self.particles, -np.inf)
        rng = np.random.default_rng(derived_seed(request.seed, "resampling"))
        yield Denoise(particles)
        for made in range(1, num_steps):
            if made in resampling_steps(num_steps):
                highest_K = np.maximum(highest_K, (yield Score(particles)))
                parents_K = rng.choice(self.particles, self.particles, p=weights(highest_K, self.strength))
                highest_K = highest_K[parents_K]
                particles = _descendants(engine, request, particles, parents_K, made)
            else:
                for particle in particles:
                    go_on(engine, particle)
            yield Denoise(particles)
        final_K = yield Score(particles)
        return particles[int(final_K.argmax())]


def resampling_steps(num_steps: int) -> frozenset[int]:
    """After how many denoiser calls particles are resampled."""
    return frozenset(min(max(round(share * num_steps), 1), num_steps - 1) for share in RESAMPLED_AFTER)


def weights(highest_K: Scores, strength: float) -> Scores:
    """exp(strength * highest), summing to 1."""
    raised_K = np.exp(strength * (highest_K - highest_K.max()))
    probabilities_K: Scores = raised_K / raised_K.sum()
    return probabilities_K


def _descendants(
    engine: Engine,
    request: EpisodeRequest,
    particles: Sequence[Episode],
    parents_K: NDArray[np.int64],
    made: int,
) -> list[Episode]:
    """The drawn particles on their way; of one drawn more than once all but the first get other noise."""
    used: set[int] = set()
    descendants = []
    for number, parent in enumerate(parents_K.tolist()):
        seed = derived_seed(request.seed, "copy", made, number) if parent in used else None
        descendants.append(branch(engine, particles[parent], seed))
        used.add(parent)
    return descendants


def _particle_seed(request: EpisodeRequest, number: int) -> int:
    """The first particle begins as the request does."""
    return derived_seed(request.seed, "particle", number) if number else request.seed
