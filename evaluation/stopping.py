"""What stopping early costs, for every threshold of a grid from one rollout each image.

Always true here: a policy that stops early at one threshold takes, until it stops, the very decisions of the
policy that never does; so one episode that never stops early, and a fork of it wherever a threshold is first
crossed, give the images of all thresholds. What an image loses is measured against that same episode's end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import Engine, Episode
from actors.errors import UserError
from actors.policy import STOP, PolicyDecider, stops_early
from actors.prompts import PromptOptions, load_prompts
from actors.rollout import rollout
from evaluation.bench import Bench
from evaluation.evaluate import noise_seed
from evaluation.methods import OpenMethod, PolicyMethod
from shapes.captions import TIERS, distinct_captions

Floats = NDArray[np.float64]

NEVER = 1.0
"""The threshold that no probability is above."""
THRESHOLDS = tuple(round(1.0 / (1.0 + math.exp(-logit / 5.0)), 4) for logit in range(35, -36, -1))
"""From .9991 to .0009, evenly in log-odds; fixed before anything is measured, as the test needs it."""
CHUNK_SLOTS = 4


@dataclass(frozen=True)
class StoppingTable:
    """Images of P prompts and S seeds, once never stopped early and once for each of T thresholds.

    quality: the judge's score; nfe and cost: of the whole episode. The last axis is NEVER, then `thresholds`.
    """

    thresholds: tuple[float, ...]
    quality_PSK: Floats
    nfe_PSK: Floats
    cost_PSK: Floats

    def losses(self, largest: float) -> Floats:
        """[P, T]: mean over seeds of what stopping early lost, in units of `largest`, from 0 to 1.

        A gain counts as no loss, and does not make up for one; a loss beyond `largest` counts as that.
        """
        lost_PST = self.quality_PSK[:, :, :1] - self.quality_PSK[:, :, 1:]
        losses_PT: Floats = (np.clip(lost_PST, 0.0, largest) / largest).mean(axis=1)
        return losses_PT

    def means(self, column: str) -> Floats:
        """[1 + T]: a column averaged over everything, for NEVER and each threshold."""
        means_K: Floats = getattr(self, f"{column}_PSK").mean(axis=(0, 1))
        return means_K


class _Recorder:
    """Never stops early, and stops a fork wherever `stop` first gets more probable than a threshold."""

    def __init__(self, opened: OpenMethod, thresholds: Sequence[float]) -> None:
        assert isinstance(opened.decider, PolicyDecider)
        network, observer = opened.decider.network, opened.decider.observer
        self._decider = PolicyDecider(network, observer, stop_threshold=NEVER)
        self._engine, self._scorer = opened.engine, opened.scorer
        self._thresholds = np.array(thresholds)
        self._stop = observer.actions.index(STOP)
        self._highest: dict[EpisodeRequest, float] = {}
        self.stopped: dict[EpisodeRequest, list[tuple[float, EpisodeResult]]] = {}
        """Of each request the probabilities, ever higher, at which it could have been stopped, and how."""

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """An action index for each episode."""
        logits_BA = self._decider.logits(observations_BD, mask_BA)
        probable_B = logits_BA.softmax(dim=1)[:, self._stop].tolist()
        early_B = stops_early(self._decider.observer.actions, mask_BA)
        for episode, probability, early in zip(episodes, probable_B, early_B, strict=True):
            before = self._highest.get(episode.request, 0.0)
            crossed = (self._thresholds >= before) & (self._thresholds < probability)
            if early and crossed.any():
                self._highest[episode.request] = probability
                result = _stopped(self._engine, self._scorer, episode.fork(), self._stop)
                self.stopped.setdefault(episode.request, []).append((probability, result))
        return self._decider(episodes, observations_BD, mask_BA)


def calibration_requests(prompts: str | None, *, limit: int, seeds: int, seed: int) -> list[EpisodeRequest]:
    """At most `limit` distinct prompts of a file, or of the embedded world's validation split (None).

    The split's tiers take equal parts, and one that has fewer captions gives all it has. Raises UserError.
    """
    if prompts is None:
        captions = distinct_captions(seed, -(-limit // len(TIERS)), "validation", exhaust=True)
        chosen: dict[str, str | None] = {caption: str(tier) for caption, tier in captions}
    else:
        options = PromptOptions("--prompts", "--prompts", "--limit")
        chosen = {prompt.text: prompt.tier for prompt in load_prompts(prompts, options=options)}
    return [
        EpisodeRequest(text, noise_seed(seed, text, number), tier)
        for text, tier in list(chosen.items())[:limit]
        for number in range(seeds)
    ]


def measure_stopping(
    bench: Bench,
    policy: PolicyMethod,
    requests: Sequence[EpisodeRequest],
    *,
    seeds: int,
    slots: int,
    thresholds: Sequence[float] = THRESHOLDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoppingTable:
    """Run all requests (a prompt's seeds in a row), and judge what each threshold would have returned.

    Raises UserError for a policy that has no `stop`.
    """
    if STOP not in policy.engine.actions:
        raise UserError(
            f"policy={policy.trained.folder}: has no stop among its actions; there is nothing to calibrate"
        )
    opened = policy.open(bench)
    columns: list[list[tuple[float, float, float]]] = []
    size = CHUNK_SLOTS * slots
    for start in range(0, len(requests), size):
        chunk = requests[start : start + size]
        recorder = _Recorder(opened, thresholds)
        ends = rollout(opened.engine, recorder, opened.observer, chunk, slots=slots, scorer=opened.scorer)
        columns += _judged(bench, ends, recorder, thresholds, slots)
        progress(len(columns), len(requests))
    table_PSK3 = np.array(columns, dtype=np.float64).reshape(-1, seeds, 1 + len(thresholds), 3)
    return StoppingTable(tuple(thresholds), table_PSK3[..., 0], table_PSK3[..., 1], table_PSK3[..., 2])


def _stopped(engine: Engine, scorer: object, episode: Episode, stop: int) -> EpisodeResult:
    """The episode, stopped here; where that takes a last look, it is looked at and pays for it."""
    engine.act(episode, stop)
    if episode.state == "looking":
        assert callable(scorer)
        scores = scorer(engine.preview([episode]), [episode.request.prompt])
        engine.receive_look(episode, {name: values[0] for name, values in scores.items()})
    return episode.result()


def _judged(
    bench: Bench,
    ends: Sequence[EpisodeResult],
    recorder: _Recorder,
    thresholds: Sequence[float],
    slots: int,
) -> list[list[tuple[float, float, float]]]:
    """For each request [1 + T] rows of quality, NFE and cost; every image is decoded and judged once."""
    results = [result for end in ends for result in (end, *_forks(recorder, end))]
    qualities = iter(_qualities(bench, results, slots))
    rows: list[list[tuple[float, float, float]]] = []
    for end in ends:
        never = (next(qualities), float(end.nfe), end.cost)
        stopped = recorder.stopped.get(end.request, [])
        made = [(next(qualities), float(result.nfe), result.cost) for _, result in stopped]
        at = [next((k for k, (p, _) in enumerate(stopped) if p > tau), None) for tau in thresholds]
        rows.append([never, *(never if k is None else made[k] for k in at)])
    return rows


def _forks(recorder: _Recorder, end: EpisodeResult) -> list[EpisodeResult]:
    return [result for _, result in recorder.stopped.get(end.request, [])]


def _qualities(bench: Bench, results: Sequence[EpisodeResult], batch: int) -> list[float]:
    qualities: list[float] = []
    for start in range(0, len(results), batch):
        part = results[start : start + batch]
        images = bench.backbone.decode(torch.stack([result.latents_CHW for result in part]))
        qualities += bench.judge(images, [result.request.prompt for result in part]).tolist()
    return qualities
