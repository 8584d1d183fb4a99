"""The held-out watch: which prompts are never trained on, and what the policy makes of them on the way.

Always true here: the same prompts and seeds at every evaluation of a run; training's random streams are not
touched, so that a run learns the same with and without it; only scores of the rewards service are used, never
the exact verifier.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.contracts import EpisodeRequest
from actors.env_runner import DiffusionEnvRunner
from actors.errors import UserError
from actors.held_out import HeldOutEpisode
from actors.prompts import Prompt, PromptOptions, load_prompts
from learner.config import RunConfig
from learner.env_runners import EnvRunners
from learner.guard_config import WatchConfig
from learner.hacking import Evaluation
from learner.json_lines import JsonLines, read_rows

FILE = "held_out.jsonl"
_OPTIONS = PromptOptions("prompts.source", "watch.split", "watch.prompts")


def split_prompts(config: RunConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on and prompts held out; a text is never in both.

    The embedded world has a split for each; of a file's prompts those are held out whose texts have the
    lowest hashes, whatever their order. Raises UserError.
    """
    options, watch = config.prompts, config.watch
    prompts = options.load()
    if watch.every == 0:
        return prompts, []
    if options.source == "shapes":
        if watch.split == options.split:
            raise UserError(f"watch.split={watch.split}: give another split than prompts.split has")
        return prompts, load_prompts("shapes", watch.split, watch.prompts, options.seed, _OPTIONS)
    if len(prompts) < 2:
        raise UserError(
            f"prompts.source={options.source}: one prompt, and none to hold out; give more, or watch.every=0"
        )
    by_hash = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.text.encode()).digest())
    chosen = set(by_hash[: min(watch.prompts, max(int(watch.share * len(prompts)), 1))])
    return [each for each in prompts if each not in chosen], [each for each in prompts if each in chosen]


def held_out_requests(config: RunConfig) -> tuple[EpisodeRequest, ...]:
    """The held-out prompts, each with one seed."""
    _, prompts = split_prompts(config)
    seeds = np.random.default_rng([config.prompts.seed, 3]).integers(0, 2**31, size=len(prompts))
    return tuple(
        EpisodeRequest(prompt.text, int(seed), prompt.tier)
        for prompt, seed in zip(prompts, seeds, strict=True)
    )


def best_actions(
    runners: EnvRunners,
    requests: Sequence[EpisodeRequest],
    score: str,
    pictured: Sequence[EpisodeRequest] = (),
) -> list[HeldOutEpisode]:
    """The newest policy without chance on all requests, in their order, spread over the env runners."""

    def work(runner: DiffusionEnvRunner, share: list[EpisodeRequest]) -> list[HeldOutEpisode]:
        return runner.run_held_out(share, score, pictured)

    runners.sync_weights()
    return runners.spread(requests, work)


class HeldOutWatch:
    """Evaluates the newest policy every so often; knows all evaluations of the run, oldest first."""

    def __init__(
        self, watch: WatchConfig, requests: Sequence[EpisodeRequest], runners: EnvRunners, run_dir: Path
    ) -> None:
        self._watch = watch
        self._requests = requests
        self._runners = runners
        self._path = run_dir / FILE
        self._file: JsonLines | None = None
        self.evaluations: list[Evaluation] = []

    def begin(self, next_iteration: int) -> None:
        """Take up the evaluations of the iterations before this one."""
        self._file = JsonLines(self._path, lambda row: row["iteration"] < next_iteration)
        self.evaluations = [_evaluation(row) for row in read_rows(self._path)]

    def due(self, iteration: int, *, last: bool) -> bool:
        """Whether to evaluate after an iteration; the last one always is."""
        return self._watch.every > 0 and (last or iteration % self._watch.every == 0)

    def evaluate(self, iteration: int, pictures: int) -> list[HeldOutEpisode]:
        """Run the newest policy on all held-out requests; the first `pictures` episodes bring images."""
        assert self._file is not None, "begin() comes first"
        started = time.monotonic()
        episodes = best_actions(self._runners, self._requests, self._watch.score, self._requests[:pictures])
        evaluation = Evaluation(
            iteration,
            quality=tuple(episode.quality for episode in episodes),
            nfe=tuple(float(episode.nfe) for episode in episodes),
            cost=tuple(episode.cost for episode in episodes),
            seconds=time.monotonic() - started,
        )
        self.evaluations.append(evaluation)
        self._file.append(asdict(evaluation))
        return episodes

    @property
    def seconds(self) -> float:
        """What all evaluations took."""
        return sum(evaluation.seconds for evaluation in self.evaluations)

    def is_best(self) -> bool:
        """Whether the last evaluation has the highest held-out utility; the earlier of two equals has it."""
        *earlier, latest = self.evaluations
        return all(latest.utility > evaluation.utility for evaluation in earlier)

    def row(self, training_s: float) -> dict[str, float]:
        """The last evaluation, for progress.jsonl; `held_out/share` is of the time of the whole run."""
        latest = self.evaluations[-1]
        return {
            "held_out/quality": float(np.mean(latest.quality)),
            "held_out/nfe": float(np.mean(latest.nfe)),
            "held_out/cost": float(np.mean(latest.cost)),
            "held_out/utility": latest.utility,
            "held_out/seconds": latest.seconds,
            "held_out/share": self.seconds / (self.seconds + training_s),
        }


def _evaluation(row: dict[str, Any]) -> Evaluation:
    per_prompt = {name: tuple(row[name]) for name in ("quality", "nfe", "cost")}
    return Evaluation(iteration=row["iteration"], seconds=row["seconds"], **per_prompt)
