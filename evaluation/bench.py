"""The bench: a backbone, the scorers a policy may pay for, and the metric it is judged with.

Always true here: the exact verifier of the embedded world judges finished images and nothing else; only an
oracle baseline, which is a bound, gets to see it before. A bench is opened once a process, from a plain
recipe that travels between processes. Its identity changes whenever any weights of it change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actors.backbones.config import BackboneConfig
from actors.contracts import Backbone, Images, QualityScorer
from actors.errors import UserError
from evaluation.config import EvaluationConfig
from rewards_service.contracts import RewardClient
from rewards_service.identity import scorers_identity
from rewards_service.loading import build_scorers
from rewards_service.local import LocalClient
from rewards_service.scorers_config import ScorersConfig
from shapes.verify import strict_score

Judge = Callable[[Images, Sequence[str]], NDArray[np.float32]]

STRICT = "strict score"
IMAGE_REWARD = "image reward"


@dataclass(frozen=True)
class Bench:
    """What every method of one evaluation shares.

    judge gives the quality of final images; metric is its name; identity says which weights were used.
    """

    backbone: Backbone
    client: RewardClient
    judge: Judge
    metric: str
    identity: str

    def scorer(self, *outputs: str) -> QualityScorer:
        """What a look asks for: the named scores."""

        def score(images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
            return self.client.score(images, prompts, outputs)

        return score

    def oracle(self, images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """A scorer that sees the metric itself; for bounds only."""
        return {"image_reward": self.judge(images, prompts)}


@dataclass(frozen=True, slots=True)
class BenchRecipe:
    """How to open a bench: names and folders only."""

    backbone: BackboneConfig
    scorers: str | ScorersConfig
    strict: bool

    def __call__(self) -> Bench:
        """Load everything; UserError for what cannot be loaded."""
        from actors.backbones.loading import load_backbone  # diffusers, open_clip, transformers: seconds

        backbone = load_backbone(self.backbone)
        try:
            client = LocalClient(build_scorers(self.scorers, self.backbone.device, "evaluation.scorers"))
        except ValueError as error:
            raise UserError(str(error)) from error

        def image_reward(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
            return client.score(images, prompts, ("image_reward",))["image_reward"]

        return Bench(
            backbone=backbone,
            client=client,
            judge=strict_scores if self.strict else image_reward,
            metric=STRICT if self.strict else IMAGE_REWARD,
            identity=_identity(backbone.identity, scorers_identity(self.scorers), str(self.strict)),
        )


def bench_recipe(backbone: BackboneConfig, config: EvaluationConfig) -> BenchRecipe:
    """The bench of a policy's backbone: judged by the verifier where the prompts are the embedded world's."""
    scorers = config.scorers
    if scorers is None:
        from shapes import weights  # megabytes that only those need who name no scorers of their own

        scorers = str(weights.PATH)
    return BenchRecipe(
        backbone=replace(backbone, dtype=config.dtype, device=config.device),
        scorers=scorers,
        strict=config.prompts == "shapes",
    )


def strict_scores(images: Images, captions: Sequence[str]) -> NDArray[np.float32]:
    """The exact verifier on a batch: [B], 0 to 1."""
    return np.array(
        [strict_score(image, caption) for image, caption in zip(images, captions, strict=True)],
        dtype=np.float32,
    )


def _identity(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
