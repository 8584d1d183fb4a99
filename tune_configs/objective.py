"""The objective of every sweep: a finished policy's utility on prompts that no trial was trained on.

    utility = mean over prompts and noises of  score(finished image) - price * cost

score is the raw reward model's score that `watch.score` names, the same for all trials; cost is in NFE,
looks at `engine.look_price` included; price is `rewards_service.arithmetic.HELD_OUT_PRICE`.

Always true here: a trial's reward weights, its price of an NFE and its sigma do not appear; prompts are
held out (of the embedded world the validation split, never the test split), their noises are other than the
watch's that early stopping and training's guards see; the exact verifier has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.held_out import HeldOutEpisode
from actors.prompts import PromptOptions, load_prompts
from learner.config import RunConfig
from learner.held_out import split_prompts
from rewards_service.arithmetic import utility
from tune_configs.sweep_config import LOWER_IS_BETTER, JudgeConfig

_OPTIONS = PromptOptions("prompts.source", "watch.split", "sweep.judge.prompts")
_STREAM = 11
"""Of the noises that policies are judged on; the watch's and training's are others."""


@dataclass(frozen=True)
class Measured:
    """A policy on P prompts with S noises each, in a fixed order: a prompt's noises together.

    quality: raw scores; nfe, cost: in NFE, the latter with looks; tiers: one a prompt, None without.
    """

    quality: tuple[float, ...]
    nfe: tuple[float, ...]
    cost: tuple[float, ...]
    tiers: tuple[str | None, ...]

    @property
    def utility(self) -> float:
        """The objective."""
        return float(self.by_prompt("utility").mean())

    def mean(self, metric: str) -> float:
        """The mean of `quality`, `nfe`, `cost` or `utility`."""
        return float(self.by_prompt(metric).mean())

    def by_prompt(self, metric: str) -> NDArray[np.float64]:
        """[P]: means over the noises of each prompt, the unit of every statistic."""
        if metric == "utility":
            values = [utility(one, cost) for one, cost in zip(self.quality, self.cost, strict=True)]
        else:
            values = list(getattr(self, metric))
        means_P: NDArray[np.float64] = np.array(values).reshape(len(self.tiers), -1).mean(1)
        return means_P


def judged_requests(config: RunConfig, judge: JudgeConfig) -> list[EpisodeRequest]:
    """The held-out prompts, at most `judge.prompts`, each with `judge.seeds` noises. Raises UserError."""
    if config.prompts.source == "shapes":
        prompts = load_prompts("shapes", config.watch.split, judge.prompts, judge.seed, _OPTIONS)
    else:
        prompts = split_prompts(config)[1][: judge.prompts]
    if len(prompts) < 2:
        raise UserError(
            f"watch.every={config.watch.every}: {len(prompts)} held-out prompts to judge on; give 1 or more, "
            f"and more prompts than are in {config.prompts.source}, or a higher watch.share"
        )
    noises_PS = np.random.default_rng([judge.seed, _STREAM]).integers(0, 2**31, (len(prompts), judge.seeds))
    return [
        EpisodeRequest(prompt.text, int(noise), prompt.tier)
        for prompt, noises in zip(prompts, noises_PS, strict=True)
        for noise in noises
    ]


def measured(episodes: Sequence[HeldOutEpisode], seeds: int) -> Measured:
    """Episodes in the order of their requests, `seeds` of each prompt."""
    return Measured(
        quality=tuple(float(episode.quality) for episode in episodes),
        nfe=tuple(float(episode.nfe) for episode in episodes),
        cost=tuple(float(episode.cost) for episode in episodes),
        tiers=tuple(episode.request.tier for episode in episodes[::seeds]),
    )


def better(metric: str) -> float:
    """1 where more of a metric is better, else -1."""
    return -1.0 if metric in LOWER_IS_BETTER else 1.0
