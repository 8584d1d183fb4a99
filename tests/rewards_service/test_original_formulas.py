"""The reward against the formulas it is specified by, computed a second time over whole episodes in float64.

Always true: nothing of the arithmetic under test is used to compute what is expected of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.ledger import RewardLedger, Target
from rewards_service.arithmetic import Components, RewardConfig

NUM_STEPS = 50
REFINE_STEPS = 2
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """T decisions: previews before each of them, then the returned image; embeddings of unit length."""

    clip_N: Floats
    aesthetic_N: Floats
    image_reward_N: Floats
    dino_ND: Floats
    actions: tuple[str, ...]
    entropies: tuple[float, ...]
    short: tuple[float, float, float]
    full: tuple[float, float, float]

    @property
    def nfe_of_decisions(self) -> Floats:
        """Of each decision, without the price that the seeds put on stopping."""
        prices = {"continue": 1, "refine": 1 + REFINE_STEPS, "stop": 0}
        return np.array([prices[action] for action in self.actions], dtype=np.float64)


def make_episode(seed: int) -> Episode:
    """Previews that change a little from one to the next; scores in float32, as scorers give them."""
    rng = np.random.default_rng(seed)
    decisions = int(rng.integers(3, 12))

    def walk(start: float, step: float) -> Floats:
        values_N = start + step * rng.standard_normal(decisions + 1).cumsum()
        return values_N.astype(np.float32).astype(np.float64)

    dino_ND = rng.standard_normal(5) + 0.3 * rng.standard_normal((decisions + 1, 5)).cumsum(axis=0)
    actions = (*rng.choice(["continue", "refine"], decisions - 1), "stop")
    low = np.array([0.22, 5.1, 0.2]) + 0.01 * rng.standard_normal(3)
    high = np.array([0.25, 5.6, 0.6]) + 0.01 * rng.standard_normal(3)
    if seed % 2:
        high[1] = low[1] - 0.1  # a metric whose references are the wrong way round
    return Episode(
        clip_N=walk(0.2, 0.02),
        aesthetic_N=walk(5.0, 0.2),
        image_reward_N=walk(0.1, 0.1),
        dino_ND=dino_ND / np.linalg.norm(dino_ND, axis=1, keepdims=True),
        actions=tuple(str(action) for action in actions),
        entropies=tuple(float(rng.random()) if action == "refine" else 0.0 for action in actions),
        short=(float(low[0]), float(low[1]), float(low[2])),
        full=(float(high[0]), float(high[1]), float(high[2])),
    )


def row(clip: Any, aesthetic: Any, image_reward: Any, **others: Any) -> dict[str, Any]:
    return {"clip_score": clip, "aesthetic": aesthetic, "image_reward": image_reward, **others}


def recorded(episode: Episode, config: RewardConfig, sigma: float = 1.0) -> list[Components]:
    """What the ledger gives for the episode, each preview scored; every decision pays 0.3 for a look."""
    previews = [
        row(
            np.float32(episode.clip_N[n]),
            np.float32(episode.aesthetic_N[n]),
            np.float32(episode.image_reward_N[n]),
            dino=episode.dino_ND[n],
        )
        for n in range(len(episode.clip_N))
    ]
    ledger = RewardLedger(config, Target(row(*episode.full), sigma, row(*episode.short)))
    nfe = 3.0
    for t, preview in enumerate(previews[:-1]):
        ledger.reach(cost=nfe + 0.3 * t, nfe=int(nfe), attempt=0, scores=preview)
        ledger.decide(episode.entropies[t])
        nfe += episode.nfe_of_decisions[t]
    looks = 0.3 * (len(previews) - 1)
    ledger.finish(cost=nfe + looks, nfe=int(nfe), num_steps=NUM_STEPS, scores=previews[-1])
    np.testing.assert_allclose(ledger.rewards, [sum(parts) for parts in ledger.parts], rtol=1e-12)
    return ledger.parts


@pytest.mark.parametrize("seed", range(6))
def test_the_first_version_term_by_term(seed: int) -> None:
    episode = make_episode(seed)
    a1, a2, a3, a4 = 1.0, 0.5, 0.2, 0.8
    b1, b2, b3 = 2.0, 1.0, 1.5
    clip_N, aesthetic_N, image_reward_N = episode.clip_N, episode.aesthetic_N, episode.image_reward_N
    last = len(episode.actions) - 1
    for t, parts in enumerate(recorded(episode, RewardConfig(profile="seed_v1"))):
        gains = similarity = terminal = 0.0
        if t < last:
            gains = (
                a1 * (clip_N[t + 1] - clip_N[t]) / 0.05
                + a2 * (aesthetic_N[t + 1] - aesthetic_N[t]) / 0.3
                + a4 * (image_reward_N[t + 1] - image_reward_N[t]) / 0.2
            )
            similarity = a3 * episode.dino_ND[t] @ episode.dino_ND[t + 1]
        else:
            terminal = b1 * clip_N[-1] + b2 * aesthetic_N[-1] + b3 * image_reward_N[-1]
        nfe = {"continue": 1, "stop": 1, "refine": 1 + REFINE_STEPS}[episode.actions[t]]
        assert parts == pytest.approx((gains, similarity, -0.01 * nfe, terminal), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_second_version_term_by_term(seed: int) -> None:
    episode = make_episode(seed)
    scores = np.stack([episode.clip_N, episode.aesthetic_N, episode.image_reward_N])
    last = len(episode.actions) - 1
    spent = 3 + episode.nfe_of_decisions.sum()
    for t, parts in enumerate(recorded(episode, RewardConfig(profile="seed_v2"))):
        gains, terminal = 0.2 * episode.entropies[t], 0.0
        if t < last:
            gains += float(np.array([0.5, 0.3, 0.4]) @ ((scores[:, t + 1] - scores[:, t]) / [0.05, 0.3, 0.2]))
        else:
            for weight, score, low, high in zip(
                (1.0, 0.4, 0.6), scores[:, -1], episode.short, episode.full, strict=True
            ):
                terminal += weight * (score - low) / (high - low) if high > low else 0.0
            terminal *= 1 + 1.5 * (NUM_STEPS - spent) / NUM_STEPS
        nfe = {"continue": 1, "stop": 1, "refine": 1 + REFINE_STEPS}[episode.actions[t]]
        assert parts == pytest.approx((gains, 0.0, -0.02 * nfe, terminal), rel=1e-9, abs=1e-12)


FACTORS = {
    "balanced": (1, 1, 1),
    "quality": (1, 0.5, 1),
    "efficiency": (1, 2, 1),
    "terminal_only": (0, 0, 1),
    "no_quality": (0, 1, 1),
    "no_efficiency": (1, 0, 1),
    "raw": (1, 1, 1),
}
"""Of quality with stability, efficiency and terminal."""


@pytest.mark.parametrize("profile", FACTORS)
@pytest.mark.parametrize("seed", range(3))
def test_every_other_profile_term_by_term(profile: Any, seed: int) -> None:
    """gamma Phi' - Phi, alpha_3 (similarity - 1), -c cost, clip((Q - Q_ref) / sigma), times the factors."""
    episode = make_episode(seed)
    alpha, beta = np.array([0.7, 0.3, 1.1]), np.array([2.0, 0.5, 1.5])
    scale, sigma, gamma, price, weight, limit = np.array([0.04, 0.5, 0.3]), 2.5, 0.93, 0.017, 1.7, 0.8
    names = ("clip", "aesthetic", "image_reward")
    config = RewardConfig(
        profile=profile,
        alpha={**dict(zip(names, alpha.tolist(), strict=True)), "stability": 0.6},
        beta=dict(zip(names, beta.tolist(), strict=True)),
        scales=dict(zip(names, scale.tolist(), strict=True)),
        gamma_d=gamma,
        c_nfe=price,
        terminal_weight=weight,
        terminal_range=limit,
    )
    units = np.ones(3) if profile == "raw" else scale
    scores = np.stack([episode.clip_N, episode.aesthetic_N, episode.image_reward_N])
    reference = np.array(episode.full)
    phi_N = (alpha / units) @ (scores - reference[:, None])
    quality_factor, price_factor, terminal_factor = FACTORS[profile]
    last = len(episode.actions) - 1
    for t, parts in enumerate(recorded(episode, config, sigma)):
        phi_after = 0.0 if t == last else phi_N[t + 1]
        unsteady = 0.0 if t == last else min(episode.dino_ND[t] @ episode.dino_ND[t + 1] - 1.0, 0.0)
        difference = (beta / units) @ (scores[:, -1] - reference) / beta.sum()
        bounded = difference if profile == "raw" else np.clip(difference / sigma, -limit, limit)
        look = 0.3
        assert parts == pytest.approx(
            (
                quality_factor * (gamma * phi_after - phi_N[t]),
                quality_factor * 0.6 * unsteady,
                -price_factor * price * (episode.nfe_of_decisions[t] + look),
                terminal_factor * weight * bounded if t == last else 0.0,
            ),
            rel=1e-9,
            abs=1e-9,
        )
