"""Which metrics are measured over stored images, and the models that only metrics need.

Always true here: plain data, checked when it is made; no model library is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from actors.errors import UserError
from rewards_service.scorers_config import ClipConfig

Resize = Literal["clean", "pytorch_fid"]

METRIC_NAMES = (
    *("clip_score", "image_reward", "hps_v2", "pick_score", "aesthetic", "strict"),
    *("dino_diversity", "fid", "inception_score", "cmmd"),
    *("nfe", "network_evals", "seconds"),
)
"""In the order of tables; what each is stands in `evaluation.metrics.definitions`."""


def _cmmd_clip() -> ClipConfig:
    return ClipConfig(model="ViT-L-14-336-quickgelu", pretrained="openai")


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The options of `addiffusion metrics`. Reward models are those of `evaluation.scorers`."""

    names: tuple[str, ...] = METRIC_NAMES
    reference: str | None = None
    """For fid and cmmd: real images as a folder or Parquet; for fid alone also an .npz with mu and sigma."""
    inception: str | None = None
    """For fid and inception_score: pt_inception-2015-12-05-6726825d.pth, or a hub's file, as scorers take."""
    resize: Resize = "clean"
    """How images get to Inception's 299 pixels: as clean-fid does it, or as pytorch-fid."""
    cmmd: ClipConfig | None = field(default_factory=_cmmd_clip)
    """The CLIP that cmmd is measured with; published numbers are of OpenAI's ViT-L/14 at 336 pixels."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in METRIC_NAMES]
        if unknown:
            raise UserError(f"names={unknown[0]!r}: give some of {', '.join(METRIC_NAMES)}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"names={','.join(self.names)}: give at least one metric, and none twice")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: give an integer >= 1")
