"""The policy's best actions on prompts that it is not trained on.

Always true here: nothing is drawn, so a policy gives one result; training's random streams are not touched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from actors.collector import Collector, Policy
from actors.contracts import EpisodeRequest, Images
from actors.ledger import Target
from actors.references import asking_for
from actors.trajectory import TrainingRequest, final_scores
from rewards_service.contracts import METRICS


@dataclass(frozen=True)
class HeldOutEpisode:
    """quality: the raw score; cost: NFE with looks at their price; image: the preview, where asked for."""

    request: EpisodeRequest
    quality: float
    nfe: int
    cost: float
    actions: tuple[str, ...]
    image_HWC: Images | None = None


def run_held_out(
    collector: Collector,
    requests: Sequence[EpisodeRequest],
    policy: Policy,
    score: str,
    pictured: Collection[EpisodeRequest] = (),
) -> list[HeldOutEpisode]:
    """Run requests with the policy's best actions; `score` is the raw score that counts as quality."""
    engine = collector.engine
    nothing = Target(dict.fromkeys(METRICS.values(), 0.0))
    gathered = collector.collect(
        [TrainingRequest(request, (0,), nothing) for request in requests],
        policy,
        asking_for([score, "image_reward"], score_every=engine.config.max_decisions),
        greedy=True,
    )
    episodes = []
    for trajectory in gathered:
        result = trajectory.result
        assert result is not None
        episodes.append(
            HeldOutEpisode(
                request=result.request,
                quality=final_scores(trajectory)[score],
                nfe=result.nfe,
                cost=result.cost,
                actions=tuple(decision.action for decision in result.decisions),
                image_HWC=_preview(collector, result.latents_CHW) if result.request in pictured else None,
            )
        )
    return episodes


def _preview(collector: Collector, latents_CHW: torch.Tensor) -> Images:
    image_HWC: Images = collector.engine.backbone.preview(latents_CHW[None])[0]
    return image_HWC
