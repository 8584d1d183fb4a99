"""Whole trajectories on the engine, to be held against a pipeline's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actors.contracts import Backbone, EpisodeRequest
from actors.engine import Engine, EngineConfig


def run_to_the_end(backbone: Backbone, config: EngineConfig, prompts: Sequence[str]) -> torch.Tensor:
    """Clean latents of the prompts with seeds 0, 1, ..., always continued, all in one batch."""
    engine = Engine(backbone, config)
    episodes = engine.begin([EpisodeRequest(prompt, seed) for seed, prompt in enumerate(prompts)])
    while not all(episode.finished for episode in episodes):
        engine.denoise(episodes)
        for episode in episodes:
            if episode.state == "deciding":
                legal = engine.legal([episode])[0][engine.action_names.index("continue")]
                engine.act(episode, engine.action_names.index("continue" if legal else "stop"))
    return torch.stack([episode.result().latents_CHW for episode in episodes])


def first_noises(backbone: Backbone, count: int) -> torch.Tensor:
    """The noise that seeds 0, 1, ... begin with."""
    return torch.stack(
        [
            torch.randn(backbone.latent_shape, generator=torch.Generator().manual_seed(seed))
            for seed in range(count)
        ]
    )
