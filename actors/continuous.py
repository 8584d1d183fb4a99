"""Continuous batching: images at different timesteps share each denoiser call; slots are filled in between.

Always true here: an image's result depends on its own request and decider, never on the other slots; a step
takes every decision that is due before it returns; whoever fills the slots decides what waits and in which
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from actors.contracts import Decider, DecisionRecord, EpisodeRequest, Images, QualityScorer
from actors.engine import Engine, Episode
from actors.errors import UserError
from actors.observations import EMBEDDINGS, Observer

OnDecision = Callable[[DecisionRecord, Images | None], None]
"""Called with a decision as it is taken, and the preview it was taken on where one is recorded, H x W x 3."""


@dataclass(eq=False)
class Job:
    """One image to make, and how; `episode` is None until it has a slot."""

    request: EpisodeRequest
    decider: Decider
    record_previews: bool = False
    on_decision: OnDecision | None = None
    episode: Episode | None = None

    @property
    def begun(self) -> Episode:
        """Its episode, once it has a slot."""
        assert self.episode is not None, f"{self.request} has no slot yet"
        return self.episode


class ContinuousBatch:
    """The slots of one engine.

    The scorer serves `look`, and every decision where the observer needs embeddings (those are counted as
    looks). Raises UserError if slots < 1, or if there is no scorer and something needs one.
    """

    def __init__(
        self, engine: Engine, observer: Observer, scorer: QualityScorer | None, *, slots: int
    ) -> None:
        if slots < 1:
            raise UserError(f"slots is {slots}; accepted: a whole number from 1")
        if scorer is None and ("look" in engine.action_names or observer.scores_every_decision):
            raise UserError(
                "scorer is None; accepted: a scorer, as `look` or the `seed` observation needs one"
            )
        self.engine = engine
        self.slots = slots
        self.active: list[Job] = []
        self._observer = observer
        self._scorer = scorer

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self.slots - len(self.active)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Give each a free slot; their prompts are encoded in one batch."""
        assert len(jobs) <= self.free, f"{len(jobs)} jobs, {self.free} free slots"
        episodes = self.engine.begin([job.request for job in jobs])
        for job, episode in zip(jobs, episodes, strict=True):
            job.episode = episode
            self.active.append(job)

    def step(self) -> list[Job]:
        """One denoiser call, and the decisions it leads to; gives the jobs that have finished."""
        self.engine.denoise([job.begun for job in self.active])
        deciding = [job for job in self.active if job.begun.state == "deciding"]
        while deciding:
            deciding = self._decide(deciding)
        finished = [job for job in self.active if job.begun.finished]
        self.active = [job for job in self.active if not job.begun.finished]
        return finished

    def drop(self, job: Job) -> None:
        """Free the slot of a job that nobody waits for any more."""
        self.active.remove(job)

    def _decide(self, deciding: Sequence[Job]) -> list[Job]:
        """One batched decision for each decider; gives the jobs that decide again at once."""
        again: list[Job] = []
        by_decider = sorted(deciding, key=lambda job: id(job.decider))
        for _, same in groupby(by_decider, key=lambda job: id(job.decider)):
            jobs = list(same)
            episodes = [job.begun for job in jobs]
            previewed = [job.begun for job in jobs if job.record_previews]
            decide(self.engine, jobs[0].decider, self._observer, self._scorer, episodes, previewed)
            for job in jobs:
                if job.on_decision is not None:
                    preview = job.begun.preview_images[-1] if job.record_previews else None
                    job.on_decision(job.begun.decisions[-1], preview)
            again += [job for job in jobs if job.begun.state == "deciding"]
        return again


def decide(
    engine: Engine,
    decider: Decider,
    observer: Observer,
    scorer: QualityScorer | None,
    deciding: Sequence[Episode],
    previewed: Sequence[Episode] = (),
) -> None:
    """One batched decision, and the looks that it asks for; `previewed` of them record what was shown.

    Whoever looked is in the state "deciding" again.
    """
    if observer.scores_every_decision:
        _look(engine, scorer, [episode for episode in deciding if not episode.looked_here])
    embeddings = None
    if observer.needs_embeddings:
        embeddings = {
            name: np.stack([episode.last_look[name] for episode in deciding]) for name in EMBEDDINGS
        }
    if previewed:
        for episode, image in zip(previewed, engine.preview(previewed), strict=True):
            episode.preview_images.append(image)
    mask_BA = engine.legal(deciding)
    observations_BD = observer.observe(deciding, mask_BA, embeddings=embeddings)
    choices = decider(deciding, observations_BD, mask_BA)
    for episode, action in zip(deciding, choices.tolist(), strict=True):
        engine.act(episode, action)
    _look(engine, scorer, [episode for episode in deciding if episode.state == "looking"])


def _look(engine: Engine, scorer: QualityScorer | None, episodes: Sequence[Episode]) -> None:
    """Score the previews, and enter each row into its episode."""
    if not episodes:
        return
    assert scorer is not None
    scores = scorer(engine.preview(episodes), [episode.request.prompt for episode in episodes])
    for row, episode in enumerate(episodes):
        engine.receive_look(episode, {name: values[row] for name, values in scores.items()})
