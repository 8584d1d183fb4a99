"""What an episode is measured against: the same prompt and seed, run to the end by `continue`.

Always true here: a reference holds raw scores, so that it stays valid when the reward's weights or
scales change; two references of the same key are the same image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actors.collector import Collector, TrainingRequest, Trajectory, final_scores
from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.ledger import Target
from rewards_service.arithmetic import RewardConfig, required_outputs


@dataclass(frozen=True)
class Reference:
    """A request run to the end: scalar scores of its image, what it took.

    observations_TD: what was seen at its decisions without the action mask, where asked for.
    """

    request: EpisodeRequest
    scores: dict[str, float]
    nfe: int
    observations_TD: NDArray[np.float32] | None = None


def reference_key(request: EpisodeRequest, engine: EngineConfig, backbone: str, scorers: str) -> str:
    """Names one reference: the image it is (model, schedule, guidance, prompt, seed) and its judges."""
    parts = [
        backbone,
        scorers,
        engine.solver,
        engine.num_steps,
        engine.timestep_spacing,
        engine.flow_shift,
        engine.guidance_scale,
        request.prompt,
        request.seed,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def reference_config(config: EngineConfig, num_steps: int) -> EngineConfig:
    """The same denoising with nothing to decide: `continue` to the end, whatever actions and budget."""
    return replace(
        config,
        num_steps=num_steps,
        warmup_steps=min(config.warmup_steps, num_steps - 1),
        actions=("continue", "stop"),
        max_nfe=num_steps,
        max_decisions=num_steps + 1,
    )


def run_references(
    collector: Collector, requests: Sequence[EpisodeRequest], reward: RewardConfig, *, observe: bool
) -> list[Reference]:
    """Run requests to the end; `observe` keeps what is seen on the way, each preview scored.

    The collector's engine has a `reference_config`.
    """
    config = collector.engine.config
    assert config.actions == ("continue", "stop")
    every = 1 if observe else config.max_decisions
    judged = replace(reward, profile="balanced", score_every=every)
    nothing = Target(dict.fromkeys(required_outputs(judged), 0.0))
    gathered = collector.collect(
        [TrainingRequest(replace(request, max_nfe=None), (0,), nothing) for request in requests],
        _to_the_end,
        judged,
        greedy=True,
    )
    seen = collector.observer.dim - collector.observer.num_actions
    return [
        Reference(
            request=request,
            scores=final_scores(trajectory),
            nfe=_result(trajectory).nfe,
            observations_TD=np.stack(trajectory.observations)[:, :seen] if observe else None,
        )
        for request, trajectory in zip(requests, gathered, strict=True)
    ]


def _to_the_end(_: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits of `continue` where it is legal, of `stop` where it is not."""
    return np.where(mask_BA, np.array([1.0, 0.0]), -1e9).astype(np.float32)


def _result(trajectory: Trajectory) -> EpisodeResult:
    assert trajectory.result is not None
    return trajectory.result
