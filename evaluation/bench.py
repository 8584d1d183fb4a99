"""The bench: a backbone, the scorers a policy may pay for, and the metric it is judged with.

Always true here: the exact verifier of the embedded world judges finished images and nothing else; only an
oracle baseline, which is a bound, gets to see it before. A bench is opened once a process, from a plain
recipe that travels between processes. Its identity changes whenever any weights of it change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.backbones.config import BackboneConfig
from actors.contracts import Backbone, Images, QualityScorer
from actors.errors import UserError
from evaluation.config import QUALITIES, EvaluationConfig
from rewards_service.contracts import RewardClient
from rewards_service.identity import scorers_identity
from rewards_service.loading import build_scorers
from rewards_service.local import LocalClient
from rewards_service.scorers_config import ScorersConfig
from shapes.verify import strict_score

Judge = Callable[[Images, Sequence[str]], NDArray[np.float32]]

STRICT = QUALITIES["strict"]
IMAGE_REWARD = QUALITIES["image_reward"]
HELD_OUT = "held-out score"
"""What policies are selected by: a reward model's score of the image as it is, never the exact verifier's."""
_OUTPUTS = {"clip_score": "clip_score", "hps_v2": "hps", "pick_score": "pick_score", "aesthetic": "aesthetic"}
"""The scores of finished images that can decide beside image reward, by `evaluation.quality`."""

_EMBEDDINGS = ("clip_image", "clip_text", "dino")
"""The outputs that are vectors."""


@dataclass(frozen=True)
class Bench:
    """What every method of one evaluation shares.

    judge gives the quality of final images; metric is its name; identity says which weights were used.
    outputs: the scores that can be asked for; pipeline: diffusers' own around the backbone's networks, for
    baselines that are pipelines.
    """

    backbone: Backbone
    client: RewardClient
    judge: Judge
    metric: str
    identity: str
    outputs: tuple[str, ...] = ("image_reward",)
    pipeline: Any = None

    @property
    def finished(self) -> str:
        """The score of finished images, as rows and metrics report it; see `finished_output`."""
        return finished_output(self.outputs)

    @property
    def scores(self) -> tuple[str, ...]:
        """The outputs that are one number an image, by which something can be chosen."""
        return tuple(output for output in self.outputs if output not in _EMBEDDINGS)

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
    metric: str
    output: str | None = None
    """The score that decides; None: image reward's, where the verifier does not."""

    def __call__(self) -> Bench:
        """Load everything; UserError for what cannot be loaded."""
        from actors.backbones.loading import load_with_pipeline  # diffusers, transformers: seconds

        pipeline, backbone = load_with_pipeline(self.backbone)
        try:
            client = LocalClient(build_scorers(self.scorers, self.backbone.device, "evaluation.scorers"))
        except ValueError as error:
            raise UserError(str(error)) from error

        if "image_reward" not in client.outputs:
            raise UserError(
                "evaluation.scorers: has no model that gives image_reward, which every image is scored with;"
                f" these give {', '.join(client.outputs)}"
            )
        output = self.output or finished_output(client.outputs)
        if output not in client.outputs:
            raise UserError(
                f"evaluation.quality: none of evaluation.scorers gives {output}; these give"
                f" {', '.join(client.outputs)}"
            )

        def scored(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
            return client.score(images, prompts, (output,))[output]

        return Bench(
            backbone=backbone,
            client=client,
            judge=strict_scores if self.metric == STRICT else scored,
            metric=self.metric,
            identity=_identity(backbone.identity, scorers_identity(self.scorers), self.metric, output),
            outputs=client.outputs,
            pipeline=pipeline,
        )


def bench_recipe(backbone: BackboneConfig, config: EvaluationConfig) -> BenchRecipe:
    """The bench of a policy's backbone, judged by what `evaluation.quality` says."""
    decided_by = config.decided_by
    return replace(_recipe(backbone, config, QUALITIES[decided_by]), output=_OUTPUTS.get(decided_by))


def held_out_recipe(backbone: BackboneConfig, config: EvaluationConfig) -> BenchRecipe:
    """The bench on which policies are selected and calibrated; the verifier has no say there."""
    return _recipe(backbone, config, HELD_OUT)


def _recipe(backbone: BackboneConfig, config: EvaluationConfig, metric: str) -> BenchRecipe:
    scorers = config.scorers
    if scorers is None:
        from shapes import weights  # megabytes that only those need who name no scorers of their own

        scorers = str(weights.PATH)
    return BenchRecipe(
        backbone=replace(backbone, dtype=config.dtype, device=config.device),
        scorers=scorers,
        metric=metric,
    )


def finished_output(outputs: Sequence[str]) -> str:
    """Which of the scores judges finished images: `image_reward_now` where there is one, or `image_reward`.

    Of a scorer that forecasts the finished image from a preview, its judgement of the image as it is counts:
    by a forecast, stopping early is as good as finishing. Looks go on asking for the forecast.
    """
    return "image_reward_now" if "image_reward_now" in outputs else "image_reward"


def strict_scores(images: Images, captions: Sequence[str]) -> NDArray[np.float32]:
    """The exact verifier on a batch: [B], 0 to 1."""
    return np.array(
        [strict_score(image, caption) for image, caption in zip(images, captions, strict=True)],
        dtype=np.float32,
    )


def _identity(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
