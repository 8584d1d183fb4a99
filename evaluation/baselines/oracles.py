"""Bounds: what a method could do that knew the metric itself. Nobody can deploy them.

Always true here: the metric is asked about every candidate, and the cost is that of the chosen image alone,
as if it had been known beforehand. Ties go to the cheaper image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import Engine, EngineConfig, Episode
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.rollout import rollout
from evaluation.baselines.names import STEP_GRID, Baseline
from evaluation.baselines.rules import ContinueDecider
from evaluation.bench import Bench
from evaluation.methods import OpenMethod


class _CleanRecorder:
    """Decides as another decider, and keeps each clean prediction that it decided about."""

    def __init__(self, inner: ContinueDecider) -> None:
        self._inner = inner
        self.clean: dict[EpisodeRequest, list[torch.Tensor]] = {}

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        for episode in episodes:
            self.clean.setdefault(episode.request, []).append(episode.clean_CHW)
        return self._inner(episodes, observations_BD, mask_BA)


class OracleStopSampler:
    """Runs a fixed schedule to its end and returns the clean prediction that the metric likes best."""

    def __init__(self, fixed: OpenMethod, bench: Bench) -> None:
        self._fixed = fixed
        self._bench = bench

    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Episodes of as many NFE as their best prediction needed."""
        fixed = self._fixed
        assert isinstance(fixed.decider, ContinueDecider)
        recorder = _CleanRecorder(fixed.decider)
        ends = rollout(
            fixed.engine,
            recorder,
            fixed.observer,
            requests,
            slots=slots,
            scorer=None,
            record_previews=record_previews,
        )
        return [self._best(end, recorder.clean[end.request], slots) for end in ends]

    def _best(self, end: EpisodeResult, clean: Sequence[torch.Tensor], slots: int) -> EpisodeResult:
        quality = judge_latents(self._bench, torch.stack(list(clean)), end.request.prompt, slots)
        assert len(clean) == end.nfe, "one prediction a denoiser call"
        nfe = int(quality.argmax()) + 1
        return replace(
            end,
            latents_CHW=clean[nfe - 1].clone(),
            nfe=nfe,
            network_evals=end.network_evals // end.nfe * nfe,
            cost=float(nfe),
            decisions=(*end.decisions[: nfe - 1], replace(end.decisions[nfe - 1], action="stop")),
            preview_images=end.preview_images[:nfe],
        )


class OracleStepsSampler:
    """Runs schedules of several lengths, and returns for each image the one that the metric likes best."""

    def __init__(self, baseline: Baseline, config: EngineConfig, bench: Bench) -> None:
        self._bench = bench
        grid = {steps for steps in STEP_GRID if steps < baseline.num_steps} | {baseline.num_steps}
        self._fixed = [fixed_schedule(bench, config, steps) for steps in sorted(grid)]

    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Episodes of as many NFE as the chosen schedule has steps."""
        ends = [one.run(requests, slots=slots, record_previews=record_previews) for one in self._fixed]
        chosen = []
        for per_length in zip(*ends, strict=True):
            latents = torch.stack([end.latents_CHW for end in per_length])
            quality = judge_latents(self._bench, latents, per_length[0].request.prompt, slots)
            chosen.append(per_length[int(quality.argmax())])
        return chosen


def fixed_schedule(bench: Bench, config: EngineConfig, num_steps: int) -> OpenMethod:
    """The engine of `config` with so many steps, all of which are made."""
    changed = replace(
        config,
        num_steps=num_steps,
        warmup_steps=min(1, num_steps - 1),
        actions=("continue", "stop"),
        max_nfe=num_steps,
        max_decisions=num_steps + 2,
    )
    engine = Engine(bench.backbone, changed)
    sizes = ObservationSizes(bench.backbone.feature_dim, bench.backbone.text_dim)
    observer = Observer(ObservationConfig("timestep", False), sizes, engine.action_names)
    return OpenMethod(engine, observer, ContinueDecider(engine.action_names), None)


def judge_latents(bench: Bench, latents_KCHW: torch.Tensor, prompt: str, batch: int) -> NDArray[np.float32]:
    """[K]: the metric of images of one prompt."""
    images = np.concatenate([bench.backbone.decode(part) for part in torch.split(latents_KCHW, batch)])
    return bench.judge(images, [prompt] * len(images))
