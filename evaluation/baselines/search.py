"""Search over several trajectories of one image: a plan for each image, carried out for many at once.

A plan is a generator. It asks for episodes to be denoised or to be scored, gets the scores, and returns the
episode that it chose. The driver gathers what all plans ask for and makes one batched call of it.

Always true here: a plan knows its own request only, so an image does not depend on those beside it; whatever
it asks for is counted, whether it led to the image or not; all noise follows from the request's seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, EpisodeResult, QualityScorer
from actors.engine import Engine, Episode


@dataclass(frozen=True)
class Denoise:
    """One denoiser call for each of these episodes."""

    episodes: Sequence[Episode]


@dataclass(frozen=True)
class Score:
    """The score of each of these episodes' clean predictions, as previews."""

    episodes: Sequence[Episode]


Scores = NDArray[np.float64]
Plan = Generator[Denoise | Score, Scores, Episode]


class Search(Protocol):
    """A way to search."""

    @property
    def width(self) -> int:
        """How many episodes a plan denoises at once."""
        ...

    def plan(self, engine: Engine, request: EpisodeRequest) -> Plan:
        """The plan for one image."""
        ...


@dataclass(eq=False)
class _Running:
    """A plan under way, what it asks for, and what it has cost so far."""

    index: int
    request: EpisodeRequest
    plan: Plan
    asks: Denoise | Score
    nfe: int = 0
    network_evals: int = 0
    looks: int = 0
    chosen: Episode | None = None
    scores: Scores = field(default_factory=lambda: np.zeros(0))


class SearchSampler:
    """Carries out one plan an image, `slots` episodes in a denoiser call or a few more."""

    def __init__(self, engine: Engine, search: Search, scorer: QualityScorer) -> None:
        self._engine = engine
        self._search = search
        self._scorer = scorer

    @torch.inference_mode()
    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Finished episodes in the order of the requests; there are no decisions in them."""
        waiting = list(enumerate(requests))[::-1]
        results: dict[int, EpisodeResult] = {}
        running: list[_Running] = []
        at_once = max(1, slots // self._search.width)
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(self._begin(*waiting.pop()))
            self._serve(running)
            for one in running:
                self._resume(one)
                if one.chosen is not None:
                    results[one.index] = self._result(one, one.chosen)
            running = [one for one in running if one.chosen is None]
        return [results[index] for index in range(len(requests))]

    def _begin(self, index: int, request: EpisodeRequest) -> _Running:
        plan = self._search.plan(self._engine, request)
        return _Running(index, request, plan, next(plan))

    def _serve(self, running: Sequence[_Running]) -> None:
        """Everything that is asked for: one denoiser call and one scoring call."""
        denoising, scoring = list[Episode](), list[_Running]()
        for one in running:
            if isinstance(one.asks, Score):
                scoring.append(one)
                continue
            denoising += one.asks.episodes
            for episode in one.asks.episodes:
                one.nfe += 1
                one.network_evals += 1 if episode.conditioning.null_BLD is None else 2
        self._engine.denoise(denoising)
        if scoring:
            self._score(scoring)

    def _score(self, scoring: Sequence[_Running]) -> None:
        episodes = [episode for one in scoring for episode in one.asks.episodes]
        prompts = [episode.request.prompt for episode in episodes]
        scores_B = self._scorer(self._engine.preview(episodes), prompts)["image_reward"].astype(np.float64)
        assert np.isfinite(scores_B).all(), "a score that is not finite reached a search"
        counts = [len(one.asks.episodes) for one in scoring]
        for one, scores in zip(scoring, np.split(scores_B, np.cumsum(counts)[:-1]), strict=True):
            one.scores, one.looks = scores, one.looks + len(scores)

    def _resume(self, one: _Running) -> None:
        try:
            one.asks = one.plan.send(one.scores)
        except StopIteration as ended:
            one.chosen = ended.value

    def _result(self, one: _Running, chosen: Episode) -> EpisodeResult:
        return EpisodeResult(
            request=one.request,
            latents_CHW=chosen.clean_CHW.clone(),
            nfe=one.nfe,
            network_evals=one.network_evals,
            looks=one.looks,
            attempts=self._search.width,
            cost=one.nfe + self._engine.config.look_price * one.looks,
            decisions=(),
        )


def branch(engine: Engine, episode: Episode, seed: int | None) -> Episode:
    """A copy that goes on along the schedule; with a seed, with other noise than the original would."""
    child = episode.fork()
    if seed is not None:
        child.generator = torch.Generator().manual_seed(seed)
    go_on(engine, child)
    return child


def go_on(engine: Engine, episode: Episode) -> None:
    """On to the next schedule point, at the next denoiser call."""
    engine.act(episode, engine.action_names.index("continue"))


def derived_seed(seed: int, *what: int | str) -> int:
    """31 bits that differ for every purpose."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
