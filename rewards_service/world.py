"""The embedded world's reward models, loaded from the folder that holds its weights.

Always true: the outputs are clip_score, clip_image, clip_text, aesthetic, image_reward, image_reward_now
and dino.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rewards_service.contracts import Scorer
from rewards_service.scorers.aesthetic import AestheticScorer, load_head
from rewards_service.scorers.clip import OpenClipScorer
from rewards_service.scorers.dino import DinoScorer
from rewards_service.scorers.preference import PreferenceScorer
from rewards_service.scorers_config import WORLD_PARTS, missing_parts


def load_scorers(folder: str | Path, device: str | torch.device = "cpu") -> list[Scorer]:
    """CLIP with its aesthetic head, DINO and preference from `folder`, which has all of WORLD_PARTS."""
    folder = Path(folder)
    if missing := missing_parts(folder):
        raise ValueError(
            f"rewards folder {folder}: no {missing[0]!r} in it; needed: {', '.join(WORLD_PARTS)}"
        )
    clip = OpenClipScorer.from_folder(folder / "clip", device)
    return [
        AestheticScorer(clip, load_head(folder / "aesthetic.safetensors")),
        DinoScorer.load(folder / "dino", device),
        PreferenceScorer.from_folder(folder / "preference", device),
    ]
