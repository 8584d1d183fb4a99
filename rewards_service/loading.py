"""Loads the reward models that a run names: a folder of the embedded world's, or a `ScorersConfig`.

Always true: a model that cannot be had is one ValueError of one line, which names the option and its value,
whatever its library raised; no scorer is given back without the weights it needs. Model libraries are
imported by those alone who load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rewards_service.contracts import Scorer
from rewards_service.scorers_config import (
    AestheticConfig,
    ClipConfig,
    ScorersConfig,
    check_files,
)

_REASON = 300
"""Characters of a library's message that are passed on: some list every weight of a model."""


def build_scorers(
    named: str | Path | ScorersConfig,
    device: str | torch.device = "cpu",
    option: str = "backbone.scorers",
) -> list[Scorer]:
    """The reward models of a folder in the embedded world's layout, or those of a configuration.

    option: what `named` is called where the user wrote it. Raises ValueError as this file's docstring says.
    """
    if not isinstance(named, ScorersConfig):
        from rewards_service.world import load_scorers

        with _blamed(option, named):
            return load_scorers(named, device)
    check_files(named, option)
    scorers: list[Scorer] = []
    if named.clip is not None:
        scorers.append(_clip(named.clip, named.aesthetic, device, option))
    if (dino := named.dino) is not None:
        from rewards_service.scorers.dino import DinoScorer

        with _blamed(f"{option}.dino.model", dino.model):
            scorers.append(
                DinoScorer.load(dino.model, device, dtype=_dtype(dino.dtype), batch_size=dino.batch_size)
            )
    if (reward := named.image_reward) is not None:
        from rewards_service.scorers.image_reward import ImageRewardScorer

        with _blamed(f"{option}.image_reward.checkpoint", reward.checkpoint):
            scorers.append(
                ImageRewardScorer.load(
                    reward.checkpoint,
                    reward.med_config,
                    device,
                    dtype=_dtype(reward.dtype),
                    batch_size=reward.batch_size,
                )
            )
    if (hps := named.hps) is not None:
        from rewards_service.scorers.hps import HpsScorer

        with _blamed(f"{option}.hps.checkpoint", hps.checkpoint):
            scorers.append(
                HpsScorer.load(
                    hps.checkpoint,
                    hps.architecture,
                    device,
                    dtype=_dtype(hps.dtype),
                    batch_size=hps.batch_size,
                    cached_prompts=hps.cached_prompts,
                )
            )
    if (pick := named.pick_score) is not None:
        from rewards_service.scorers.pick_score import PickScorer

        with _blamed(f"{option}.pick_score.model", pick.model):
            scorers.append(
                PickScorer.load(
                    pick.model,
                    pick.processor,
                    device,
                    dtype=_dtype(pick.dtype),
                    batch_size=pick.batch_size,
                    cached_prompts=pick.cached_prompts,
                )
            )
    return scorers


def _clip(
    config: ClipConfig, aesthetic: AestheticConfig | None, device: str | torch.device, option: str
) -> Scorer:
    from rewards_service.scorers.aesthetic import AestheticScorer, load_head
    from rewards_service.scorers.clip import OpenClipScorer

    name = config.model if config.pretrained is None else f"{config.model} ({config.pretrained})"
    with _blamed(f"{option}.clip.model", name):
        clip = OpenClipScorer.load(
            config.model,
            config.pretrained,
            device,
            dtype=_dtype(config.dtype),
            batch_size=config.batch_size,
            cached_prompts=config.cached_prompts,
        )
    if aesthetic is None:
        return clip
    with _blamed(f"{option}.aesthetic.head", aesthetic.head):
        return AestheticScorer(clip, load_head(aesthetic.head))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@contextmanager
def _blamed(option: str, value: object) -> Iterator[None]:
    """Whatever is raised inside is about this option: a damaged file makes the libraries raise anything."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        reason = said if type(error) is ValueError else f"{type(error).__name__}: {said}"
        shown = reason if len(reason) <= _REASON else f"{reason[:_REASON]}..."
        raise ValueError(f"{option}={value}: {shown}") from error
