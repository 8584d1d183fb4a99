"""The client without a service: scores in this process, for tests, one-CPU runs and evaluation.

Always true: it answers as the service does, to the same checks, and never imports Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.scoring import output_sources, score_batch
from rewards_service.within_memory import WithinMemory


@dataclass(frozen=True)
class Answered:
    """A request that was scored when it was made."""

    scores: Scores

    def result(self) -> Scores:
        """The scores."""
        return self.scores


class LocalClient:
    """A `RewardClient` that runs its scorers where it stands."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = tuple(WithinMemory(scorer) for scorer in scorers)
        self.outputs = tuple(output_sources(self.scorers))

    def submit(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> Answered:
        """Scores at once; the answer waits in the returned object."""
        return Answered(self.score(images, prompts, outputs))

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        """Scores N images against N prompts."""
        return score_batch(self.scorers, images, prompts, outputs)
