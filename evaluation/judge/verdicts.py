"""From answers to verdicts: both orders of a pair, and what all pairs of two methods say.

Always true here: a method wins a pair only where it is preferred in both orders; anything else that was
answered twice is a tie (Zheng et al., 2023, arXiv 2306.05685). A pair with an unanswered order is unjudged:
it is counted and shown, and is no tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.judge.agreement import wilson
from evaluation.judge.question import Choice
from evaluation.metrics.contracts import UnmeasurableError
from evaluation.statistics import Estimate, Resampling

Outcome = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Verdict:
    """One image of method `first` against that of `second`, for the same prompt and seed.

    forward is the choice where first's image came first, backward where second's did ("first" is then
    second's image); None where there is no answer.
    """

    first: str
    second: str
    prompt: str
    seed: int
    forward: Choice | None
    backward: Choice | None

    @property
    def outcome(self) -> Outcome | None:
        """Who won; None if an order was not answered."""
        if self.forward is None or self.backward is None:
            return None
        if (self.forward, self.backward) == ("first", "second"):
            return "first"
        if (self.forward, self.backward) == ("second", "first"):
            return "second"
        return "tie"

    @property
    def score(self) -> float:
        """First's: 1, 0.5 or 0, of a judged pair."""
        assert self.outcome is not None
        return {"first": 1.0, "tie": 0.5, "second": 0.0}[self.outcome]


@dataclass(frozen=True)
class Tally:
    """What all pairs of two methods say.

    win_rate counts a tie as half and resamples prompts; its p is of the difference from a half. decided is
    first's share of the pairs that somebody won, with Wilson's interval, which takes pairs as independent.
    swayed is the share of judged pairs in which the judge chose the same place twice.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    unjudged: int
    win_rate: Estimate | None
    decided: float | None
    decided_ci95: tuple[float, float]
    swayed: float | None


def tally(verdicts: Sequence[Verdict], resamples: int = 10_000, seed: int = 0) -> Tally:
    """Verdicts on two methods in numbers. win_rate is None for fewer than two prompts."""
    assert verdicts
    first, second = verdicts[0].first, verdicts[0].second
    assert all((each.first, each.second) == (first, second) for each in verdicts)
    judged = [each for each in verdicts if each.outcome is not None]
    counts = {kind: sum(each.outcome == kind for each in judged) for kind in ("first", "tie", "second")}
    by_prompt: dict[str, list[float]] = {}
    for each in judged:
        by_prompt.setdefault(each.prompt, []).append(each.score)
    win_rate = None
    if len(by_prompt) > 1:
        margin = Resampling(len(by_prompt), resamples, seed).mean(
            [float(np.mean(scores)) - 0.5 for scores in by_prompt.values()]
        )
        win_rate = Estimate(margin.value + 0.5, margin.low + 0.5, margin.high + 0.5, margin.p)
    decided = counts["first"] + counts["second"]
    swayed = sum(each.forward == each.backward != "tie" for each in judged)
    return Tally(
        first,
        second,
        counts["first"],
        counts["tie"],
        counts["second"],
        len(verdicts) - len(judged),
        win_rate,
        counts["first"] / decided if decided else None,
        wilson(counts["first"], decided),
        swayed / len(judged) if judged else None,
    )


def shared_outcomes(
    one: Sequence[Verdict], other: Sequence[Verdict]
) -> tuple[list[str], list[str], list[str]]:
    """What two judges said of the pairs that both judged, and those pairs' prompts: for Cohen's kappa."""
    known = {(each.first, each.second, each.prompt, each.seed): each.outcome for each in other}
    rows = [
        (each.outcome, outcome, each.prompt)
        for each in one
        if each.outcome is not None
        and (outcome := known.get((each.first, each.second, each.prompt, each.seed))) is not None
    ]
    if not rows:
        raise UnmeasurableError("no pair that both judges judged")
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
