"""What an episode is measured against: the same prompt and seed, run to the end by `continue`.

Always true here: a reference holds raw scores, so that it stays valid when the reward's weights or
scales change; two references of the same key, prompt and seed are the same image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.collector import Collector
from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.ledger import Target
from actors.trajectory import TrainingRequest, Trajectory, final_scores
from rewards_service.arithmetic import RewardConfig
from rewards_service.contracts import METRICS

#: Options of the decisions, of which a reference takes none. Any other option, and any that is new, is part
#: of what a reference is found by.
DECISION_OPTIONS = (
    "warmup_steps",
    "stop_from",
    "actions",
    "max_nfe",
    "max_attempts",
    "restart_needs_look",
    "refine_steps",
    "refine_noise",
    "refine_threshold",
    "refine_region",
    "refine_grid",
    "refine_share",
    "refine_head",
    "look_price",
    "max_decisions",
)


@dataclass(frozen=True)
class Reference:
    """A request run to the end: scalar scores of its image, what it took.

    observations_TD: what was seen at its decisions without the action mask, where asked for.
    """

    request: EpisodeRequest
    scores: dict[str, float]
    nfe: int
    observations_TD: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ReferenceKind:
    """Everything but prompt and seed that a reference depends on: its judges, its model, its schedule.

    backbone, scorers: identities made of the weights' content; dtype: the type that the model ran in.
    """

    backbone: str
    dtype: str
    scorers: str
    engine: dict[str, Any]

    @classmethod
    def of(cls, engine: EngineConfig, backbone: str, dtype: str, scorers: str) -> ReferenceKind:
        """The kind of the references that are run under these options."""
        options = {name: value for name, value in asdict(engine).items() if name not in DECISION_OPTIONS}
        return cls(backbone, dtype, scorers, options)

    @property
    def key(self) -> str:
        """Twenty-four hex digits that differ wherever anything of it differs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


def plain_request(request: EpisodeRequest) -> EpisodeRequest:
    """What fixes a reference's image within its kind: prompt and seed."""
    return EpisodeRequest(request.prompt, request.seed)


def reference_config(config: EngineConfig, num_steps: int) -> EngineConfig:
    """The same denoising with nothing to decide: `continue` to the end, whatever actions and budget."""
    return replace(
        config,
        num_steps=num_steps,
        timesteps=config.timesteps if num_steps == config.num_steps else None,
        warmup_steps=min(config.warmup_steps, num_steps - 1),
        actions=("continue", "stop"),
        max_nfe=num_steps,
        max_decisions=num_steps + 1,
    )


def run_references(
    collector: Collector, requests: Sequence[EpisodeRequest], outputs: Sequence[str], *, observe: bool
) -> list[Reference]:
    """Run requests to the end and score their images; `observe` keeps what is seen, each preview scored.

    outputs: the scores wanted, scalars and perhaps `dino`; what the observer shows is scored besides. The
    collector's engine has a `reference_config`.
    """
    config = collector.engine.config
    assert config.actions == ("continue", "stop")
    wanted = outputs if observe else [name for name in outputs if name != "dino"]  # which is no scalar
    judged = asking_for(wanted, score_every=1 if observe else config.max_decisions)
    nothing = Target(dict.fromkeys(METRICS.values(), 0.0))
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


def asking_for(outputs: Sequence[str], score_every: int) -> RewardConfig:
    """A reward that needs these scores and no others; what it pays is not looked at."""
    weights = {name: 1.0 for name, output in METRICS.items() if output in outputs}
    steady = {"stability": 1.0} if "dino" in outputs else {}
    scales = dict.fromkeys(METRICS, 1.0)
    return RewardConfig(alpha=weights | steady, beta=weights, scales=scales, score_every=score_every)


def _to_the_end(_: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits of `continue` where it is legal, of `stop` where it is not."""
    return np.where(mask_BA, np.array([1.0, 0.0]), -1e9).astype(np.float32)


def _result(trajectory: Trajectory) -> EpisodeResult:
    assert trajectory.result is not None
    return trajectory.result
