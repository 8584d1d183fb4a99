"""The reward of one training episode, decision by decision, as its states become known.

Always true here: a decision's reward is fixed the moment its successor state is known, never before; the
potential is that of the last scored preview, so that shaping telescopes whatever is scored; the terminal
part is added to the last decision only; each reward is the sum of its parts, which are kept beside it. What
the parts are stands in `rewards_service.arithmetic`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

from rewards_service.arithmetic import (
    Components,
    Ending,
    RewardConfig,
    Step,
    final_reward,
    quality,
    step_reward,
)
from rewards_service.contracts import ScoreRow
from rewards_service.scoring import ScoringError


@dataclass(frozen=True, slots=True)
class Target:
    """What an episode is measured against: scores of its references, and the scale of differences.

    reference: the same prompt and seed, run to the end; short_reference: run to the end in fewer steps
    (only the seeds' second reward knows it).
    """

    reference: ScoreRow
    sigma: float = 1.0
    short_reference: ScoreRow | None = None


class RewardLedger:
    """Keeps one episode's rewards: `reach` every state, `decide` in it, in the end `finish`.

    `rewards` has one number a decision, `parts` what it is the sum of. A score that is missing or not finite
    is a ScoringError that names the prompt and the decision.
    """

    def __init__(self, config: RewardConfig, target: Target, prompt: str = "") -> None:
        self.rewards: list[float] = []
        self.parts: list[Components] = []
        self._config = config
        self._target = target
        self._prompt = prompt
        self._scores: ScoreRow | None = None
        self._scores_attempt = 0
        self._cost, self._nfe = 0.0, 0
        self._open = False
        self._attention_entropy = 0.0

    def fork(self) -> RewardLedger:
        """The same ledger once more, in the state that both will decide in."""
        assert not self._open, "a fork between a decision and its successor state"
        twin = copy.copy(self)
        twin.rewards, twin.parts = list(self.rewards), list(self.parts)
        return twin

    def reach(self, *, cost: float, nfe: int, attempt: int, scores: ScoreRow | None) -> None:
        """A state to decide in; `scores` where its preview was scored (the first state's always is)."""
        if self._open:
            self._close(cost, nfe, scores, same_attempt=attempt == self._scores_attempt)
        self._cost, self._nfe = cost, nfe
        if scores is not None:
            self._scores, self._scores_attempt = scores, attempt

    def decide(self, attention_entropy: float = 0.0) -> None:
        """A decision is taken in the state reached last; a refinement has an attention entropy."""
        assert not self._open, "a decision before the last one's successor state is known"
        assert self._scores is not None, "the first state of an episode was not scored"
        self._open, self._attention_entropy = True, attention_entropy

    def finish(self, *, cost: float, nfe: int, num_steps: int, scores: ScoreRow) -> float:
        """The returned image's scores; gives its quality. num_steps: of the schedule."""
        self._close(cost, nfe, scores, ends=True)
        target = self._target
        ending = Ending(scores, target.reference, nfe, num_steps, target.short_reference)
        try:
            bonus = final_reward(ending, self._config, target.sigma)
            reached = quality(scores, self._config)
        except ScoringError as error:
            raise self._located(error, len(self.parts) - 1) from error
        self.rewards[-1] += bonus
        self.parts[-1] = self.parts[-1]._replace(terminal=bonus)
        assert all(math.isfinite(reward) for reward in self.rewards), f"rewards {self.rewards}"
        return reached

    def _close(
        self,
        cost: float,
        nfe: int,
        scores: ScoreRow | None,
        *,
        ends: bool = False,
        same_attempt: bool = True,
    ) -> None:
        assert self._open, "an episode ends by a decision"
        assert self._scores is not None
        step = Step(
            before=self._scores,
            after=scores,
            cost=cost - self._cost,
            ends=ends,
            same_attempt=same_attempt,
            attention_entropy=self._attention_entropy,
            nfe=nfe - self._nfe,
        )
        try:
            parts = step_reward(step, self._config, self._target.reference)
        except ScoringError as error:
            raise self._located(error, len(self.parts)) from error
        self.parts.append(parts)
        self.rewards.append(math.fsum(parts))
        self._open = False

    def _located(self, error: ScoringError, decision: int) -> ScoringError:
        return ScoringError(f"prompt {self._prompt!r}, decision {decision}: {error}")
