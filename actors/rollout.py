"""Rollout: run requests through the engine with continuous batching, until all are finished.

Always true here: a slot that finishes is refilled before the next denoiser call; results come in the
order of the requests; they do not depend on the number of slots, as long as the decider looks at each
episode on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from actors.contracts import Decider, EpisodeRequest, EpisodeResult, QualityScorer
from actors.engine import Engine, Episode
from actors.errors import UserError
from actors.observations import EMBEDDINGS, Observer


def rollout(
    engine: Engine,
    decider: Decider,
    observer: Observer,
    requests: Iterable[EpisodeRequest],
    *,
    slots: int,
    scorer: QualityScorer | None,
    record_previews: bool = False,
    on_finished: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Finish every request; `slots` episodes share each denoiser call.

    The scorer serves `look`, and every decision where the observer needs embeddings (those are counted
    as looks). Raises UserError if slots < 1, or if there is no scorer and something needs one.
    """
    if slots < 1:
        raise UserError(f"slots is {slots}; accepted: a whole number from 1")
    if scorer is None and ("look" in engine.action_names or observer.scores_every_decision):
        raise UserError("scorer is None; accepted: a scorer, as `look` or the `seed` observation needs one")
    waiting = enumerate(requests)
    active: dict[int, Episode] = {}
    results: dict[int, EpisodeResult] = {}
    while True:
        _refill(engine, active, waiting, slots)
        if not active:
            return [results[index] for index in sorted(results)]
        engine.denoise(list(active.values()))
        deciding = [episode for episode in active.values() if episode.state == "deciding"]
        while deciding:
            deciding = decide(engine, decider, observer, scorer, deciding, record_previews)
        for index in [index for index, episode in active.items() if episode.finished]:
            results[index] = active.pop(index).result()
            if on_finished is not None:
                on_finished(results[index])


def _refill(
    engine: Engine,
    active: dict[int, Episode],
    waiting: Iterable[tuple[int, EpisodeRequest]],
    slots: int,
) -> None:
    """Begin as many waiting requests as there are free slots, in one batch."""
    fresh = [entry for _, entry in zip(range(slots - len(active)), waiting, strict=False)]
    episodes = engine.begin([request for _, request in fresh])
    active.update(zip([index for index, _ in fresh], episodes, strict=True))


def decide(
    engine: Engine,
    decider: Decider,
    observer: Observer,
    scorer: QualityScorer | None,
    deciding: Sequence[Episode],
    record_previews: bool,
) -> list[Episode]:
    """One batched decision, and the looks that it asks for.

    Returns the episodes that decide again at once, as after a look.
    """
    if observer.scores_every_decision:
        _look(engine, scorer, [episode for episode in deciding if not episode.looked_here])
    embeddings = None
    if observer.needs_embeddings:
        embeddings = {
            name: np.stack([episode.last_look[name] for episode in deciding]) for name in EMBEDDINGS
        }
    if record_previews:
        for episode, image in zip(deciding, engine.preview(deciding), strict=True):
            episode.preview_images.append(image)
    mask_BA = engine.legal(deciding)
    observations_BD = observer.observe(deciding, mask_BA, embeddings=embeddings)
    choices = decider(deciding, observations_BD, mask_BA)
    for episode, action in zip(deciding, choices.tolist(), strict=True):
        engine.act(episode, action)
    _look(engine, scorer, [episode for episode in deciding if episode.state == "looking"])
    return [episode for episode in deciding if episode.state == "deciding"]


def _look(engine: Engine, scorer: QualityScorer | None, episodes: Sequence[Episode]) -> None:
    """Score the previews, and enter each row into its episode."""
    if not episodes:
        return
    assert scorer is not None
    scores = scorer(engine.preview(episodes), [episode.request.prompt for episode in episodes])
    for row, episode in enumerate(episodes):
        engine.receive_look(episode, {name: values[row] for name, values in scores.items()})
