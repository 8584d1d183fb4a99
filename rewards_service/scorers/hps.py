"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): a CLIP ViT-H/14 tuned on people's choices.

Always true: `hps` is 100 times the cosine of both embeddings, in the units of the paper's table; the
published package's own `score` gives the cosine. Compare it between images of one prompt only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.clip import OpenClipScorer
from rewards_service.scorers.pretrained import checkpoint_file

SCALE = 100.0


class HpsScorer:
    """Gives `hps` [N], about 20 to 35, higher is better."""

    name = "hps"
    outputs: tuple[str, ...] = ("hps",)

    def __init__(self, clip: OpenClipScorer) -> None:
        self.clip = clip

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        architecture: str = "ViT-H-14",
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> HpsScorer:
        """Loads the published checkpoint into an open_clip model; options: `OpenClipScorer`'s.

        The longer side is fitted and the rest filled with black, as the published package does.
        """
        file = checkpoint_file(checkpoint)
        return cls(OpenClipScorer.load(architecture, file, device, resize_mode="longest", **options))

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One image pass."""
        return {"hps": self.clip.score(images, prompts)["clip_score"] * SCALE}
