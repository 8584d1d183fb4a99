"""An episode to gather, and the finished one as a learner takes it.

Always true here: whatever belongs to the decisions is in their order and of their number; a twin (see
`actors.branching`) has all decisions, those before its fork are its trunk's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, EpisodeResult, Images
from actors.ledger import Target
from rewards_service.arithmetic import Components
from rewards_service.contracts import ScoreRow


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """An episode to gather. `stream` seeds the generator that draws its actions.

    fork_at: the decision that is taken twice, where the episode gets so far; the second time by a twin, which
    draws among the other actions.
    """

    request: EpisodeRequest
    stream: tuple[int, ...]
    target: Target
    fork_at: int | None = None


@dataclass
class Trajectory:
    """One finished episode as the learner takes it: T decisions, each with what was seen and drawn.

    observations_TD, actions_T, rewards_T (each the sum of its parts), logits_TA and log_probs_T belong to the
    decisions; scored holds (decision, scores) of every scored preview, the last entry is the
    returned image. values_T is for whoever has a critic to fill. seconds_spent_T is what had been spent on
    the episode when each decision was taken, seconds what it took in all: its equal share of every batched
    step that it was part of (text, denoising, decoding, waiting for scores, deciding). previews_T holds
    what was seen, where that was asked for. forked_at: the decision that a twin took too, None without one; a
    twin has all decisions, those before the fork are its trunk's.
    """

    training: TrainingRequest
    forked_at: int | None = None
    is_twin: bool = False
    observations: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    parts: list[Components] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    seconds_spent: list[float] = field(default_factory=list)
    seconds: float = 0.0
    previews: list[Images] = field(default_factory=list)
    scored: list[tuple[int, ScoreRow]] = field(default_factory=list)
    quality: float = float("nan")
    result: EpisodeResult | None = None

    def fork(self) -> Trajectory:
        """A twin's: the decisions so far."""
        at = len(self.actions)
        self.forked_at = at
        return Trajectory(
            self.training,
            forked_at=at,
            is_twin=True,
            observations=list(self.observations),
            actions=list(self.actions),
            logits=list(self.logits),
            log_probs=list(self.log_probs),
            entropies=list(self.entropies),
            seconds_spent=list(self.seconds_spent),
            seconds=self.seconds,
            previews=list(self.previews),
            scored=list(self.scored),
        )


def final_scores(trajectory: Trajectory) -> dict[str, float]:
    """The scalar scores of the returned image."""
    _, scores = trajectory.scored[-1]
    return {name: float(value) for name, value in scores.items() if np.ndim(value) == 0}
