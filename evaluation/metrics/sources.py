"""Who makes which features of images: reward models, Inception, the CLIP of CMMD, the exact verifier.

Always true here: a source is plain data that travels to other processes; its models are loaded when it is
opened, and one that cannot be loaded is a ValueError of one line. Its identity changes with the weights and
with every option that changes a feature. The verifier judges finished images here, as everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from evaluation.metrics.config import MetricsConfig, Resize
from evaluation.metrics.contracts import UnmeasurableError
from rewards_service.contracts import Images, Scores
from rewards_service.identity import scorers_identity
from rewards_service.loading import build_scorers
from rewards_service.local import LocalClient
from rewards_service.scorers_config import OUTPUTS, ClipConfig, ScorersConfig

Extractor = Callable[[Images, Sequence[str]], Scores]
"""uint8 images [N, H, W, 3] and their N prompts to arrays of N rows by name."""

SCORES = ("clip_score", "aesthetic", "image_reward_now", "dino", "hps", "pick_score")
"""The outputs of reward models that metrics are made of. Of a scorer that forecasts the finished image from a
preview, its judgement of the image as it is counts."""
_WORLD_SCORES = ("clip_score", "aesthetic", "image_reward_now", "dino")


class Source(Protocol):
    """Makes some features of images."""

    @property
    def name(self) -> str:
        """What its stored features are called."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The features it makes."""
        ...

    @property
    def needs_prompts(self) -> bool:
        """Whether its features depend on the prompt."""
        ...

    def identity(self) -> str:
        """Changes with everything the features depend on. Reads local weights; raises ValueError."""
        ...

    def open(self) -> Extractor:
        """Load what it needs. Raises ValueError."""
        ...


@dataclass(frozen=True)
class ScorerSource:
    """Reward models of `rewards_service`, in this process."""

    name: str
    outputs: tuple[str, ...]
    scorers: ScorersConfig | str
    device: str = "cpu"
    option: str = "evaluation.scorers"

    needs_prompts = True

    def identity(self) -> str:
        """Of the models' files and options."""
        return scorers_identity(self.scorers)

    def open(self) -> Extractor:
        """Load the models."""
        client = LocalClient(build_scorers(self.scorers, self.device, self.option))
        return lambda images, prompts: client.score(images, prompts, self.outputs)


@dataclass(frozen=True)
class InceptionSource:
    """The Inception network of published FID."""

    weights: str
    resize: Resize
    device: str = "cpu"
    batch_size: int = 64

    name = "inception"
    outputs = ("inception", "inception_logits")
    needs_prompts = False

    def identity(self) -> str:
        """Of the file's content and the resizing."""
        path = Path(self.weights)
        if not path.is_file():
            return _digest(self.weights, self.resize)
        with path.open("rb") as file:
            return _digest(hashlib.file_digest(file, "sha256").hexdigest(), self.resize)

    def open(self) -> Extractor:
        """Load the network."""
        from evaluation.metrics.inception import InceptionFeatures

        try:
            return InceptionFeatures.load(self.weights, self.resize, self.device, self.batch_size)
        except (OSError, ValueError) as error:
            raise ValueError(f"evaluation.metrics.inception={self.weights}: {error}") from error


@dataclass(frozen=True)
class ClipSource:
    """Unit image embeddings of the CLIP that CMMD is measured with: `cmmd_clip` [N, D]."""

    clip: ClipConfig
    device: str = "cpu"

    name = "cmmd"
    outputs = ("cmmd_clip",)
    needs_prompts = False

    def identity(self) -> str:
        """Of the model's files and options."""
        return scorers_identity(ScorersConfig(clip=self.clip))

    def open(self) -> Extractor:
        """Load the model."""
        scorers = build_scorers(ScorersConfig(clip=self.clip), self.device, "evaluation.metrics.cmmd")
        client = LocalClient(scorers)

        def embed(images: Images, prompts: Sequence[str]) -> Scores:
            return {"cmmd_clip": client.score(images, [""] * len(images), ["clip_image"])["clip_image"]}

        return embed


@dataclass(frozen=True)
class VerifierSource:
    """The embedded world's exact judge: `strict` [N], 0 to 1."""

    name = "verifier"
    outputs = ("strict",)
    needs_prompts = True

    def identity(self) -> str:
        """Of its code."""
        import shapes.verify

        code = Path(shapes.verify.__file__).parent
        return _digest(*((code / f"{part}.py").read_text() for part in ("captions", "detect", "verify")))

    def open(self) -> Extractor:
        """Nothing is loaded; an image or a prompt of another world is UnmeasurableError."""
        from evaluation.bench import strict_scores

        def judge(images: Images, prompts: Sequence[str]) -> Scores:
            try:
                return {"strict": strict_scores(images, prompts)}
            except ValueError as error:
                raise UnmeasurableError(f"not of the embedded world: {error}") from error

        return judge


def sources_of(
    config: MetricsConfig, scorers: ScorersConfig | str | None, device: str
) -> tuple[list[Source], dict[str, str]]:
    """All sources that the options name, and for every feature that none of them makes the reason."""
    found: list[Source] = [VerifierSource()]
    absent: dict[str, str] = {}
    if isinstance(scorers, ScorersConfig):
        for name, parts in scorers.scorer_parts().items():
            given = tuple(output for part in parts for output in OUTPUTS[part] if output in SCORES)
            others = {each.name: None for each in fields(scorers) if each.name not in parts}
            found.append(ScorerSource(name, given, replace(scorers, **others), device))
        for section, outputs in OUTPUTS.items():
            if getattr(scorers, section) is None:
                absent |= dict.fromkeys(outputs, f"evaluation.scorers.{section}=null: no model is named")
    else:
        if scorers is None:
            from shapes import weights

            scorers = str(weights.PATH)
        found.append(ScorerSource("world", _WORLD_SCORES, scorers, device))
        for output in set(SCORES) - set(_WORLD_SCORES):
            absent[output] = "the embedded world has no such model; name one in evaluation.scorers"
    if config.inception is None:
        reason = "evaluation.metrics.inception=null: give pt_inception-2015-12-05-6726825d.pth"
        absent |= dict.fromkeys(InceptionSource.outputs, reason)
    else:
        found.append(InceptionSource(config.inception, config.resize, device, config.batch_size))
    if config.cmmd is None:
        absent["cmmd_clip"] = "evaluation.metrics.cmmd=null: no model is named"
    else:
        found.append(ClipSource(config.cmmd, device))
    return found, absent


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
