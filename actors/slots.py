"""What the `Collector` keeps of an episode while it runs, and of the group that takes its turn together.

Always true here: a slot's scores are of the clean prediction that it shows now, or None.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import QUALITY_FEATURES
from actors.episode import Episode
from actors.ledger import RewardLedger
from actors.observations import quality_vector
from actors.trajectory import Trajectory
from rewards_service.contracts import Pending

_TWIN = 1
"""Follows the stream of an episode in its twin's."""


@dataclass
class Slot:
    """An episode that runs: what it has to be paid, and what is known of its image."""

    episode: Episode
    ledger: RewardLedger
    trajectory: Trajectory
    order: int
    generator: np.random.Generator
    scores: dict[str, NDArray[np.float32]] | None = None
    """Of the current clean prediction; None until it has been scored."""
    latest: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Of the last preview that was scored."""
    critic_quality: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(len(QUALITY_FEATURES), np.float32)
    )
    """Quality vector of that preview, looked at or not: what the critic may see."""
    best_image_reward: float = -np.inf
    unscored_decisions: int = 0

    def fork(self) -> Slot:
        """A twin about to take the same decision, with random numbers of its own for its actions."""
        return replace(
            self,
            episode=self.episode.fork(),
            ledger=self.ledger.fork(),
            trajectory=self.trajectory.fork(),
            generator=np.random.default_rng((*self.trajectory.training.stream, _TWIN)),
        )

    def enter(self, scores: dict[str, NDArray[np.float32]]) -> None:
        """Scores of what is shown have arrived."""
        episode = self.episode
        self.best_image_reward = max(self.best_image_reward, float(scores["image_reward"]))
        self.critic_quality = quality_vector(
            scores,
            self.latest,
            step_ratio=episode.progress,
            nfe_ratio=episode.nfe / episode.max_nfe,
            best_image_reward=self.best_image_reward,
        )
        self.scores = self.latest = scores
        self.unscored_decisions = 0
        self.trajectory.scored.append((len(self.trajectory.actions), scores))

    def forget_if_replaced(self, shown_CHW: torch.Tensor) -> None:
        """Drop scores of an image that is no longer shown.

        An earlier candidate may be returned instead of it, or what was extrapolated from it.
        """
        if self.episode.clean_CHW is not shown_CHW:
            self.scores = None


@dataclass
class Group:
    """Slots that are scored together, while another group denoises."""

    slots: list[Slot] = field(default_factory=list)
    twins: deque[Slot] = field(default_factory=deque)
    """Waiting for a free slot."""
    awaiting: list[Slot] = field(default_factory=list)
    awaited: list[Hashable] = field(default_factory=list)
    """By what their scores are remembered, where they are."""
    pending: Pending | None = None


@contextlib.contextmanager
def shared_seconds(slots: Sequence[Slot]) -> Iterator[None]:
    """Each slot's episode is charged an equal share of the seconds that pass inside."""
    started = time.perf_counter()
    yield
    share = (time.perf_counter() - started) / len(slots)
    for slot in slots:
        slot.trajectory.seconds += share
