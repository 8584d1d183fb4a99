"""Which reward models are loaded, in which type and how many images at a time.

Always true: an instance that exists is usable as far as can be said without its files; every impossible
value was refused by name. No model library is imported. A checkpoint is a file, or one file of a hub
repository as `hf-hub:OWNER/REPOSITORY/FILE`; a model is whatever its library takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

HUB = "hf-hub:"
Dtype = Literal["float32", "bfloat16", "float16"]

#: What a folder of the embedded world's reward models holds.
WORLD_PARTS = ("clip", "aesthetic.safetensors", "dino", "preference")
#: What each section of a `ScorersConfig` gives.
OUTPUTS = {
    "clip": ("clip_score", "clip_image", "clip_text"),
    "aesthetic": ("aesthetic",),
    "image_reward": ("image_reward", "image_reward_now"),
    "dino": ("dino",),
    "hps": ("hps",),
    "pick_score": ("pick_score",),
}
_MULTIPLE = 8
_HOW_IT_RUNS = ("batch_size", "cached_prompts")


@dataclass(frozen=True)
class ClipConfig:
    """CLIP through open_clip: `clip_score`, `clip_image` and `clip_text`."""

    model: str = "ViT-L-14-quickgelu"
    """A name that open_clip knows, `hf-hub:OWNER/REPOSITORY`, or a folder with open_clip_config.json."""
    pretrained: str | None = "openai"
    """For a name: open_clip's tag or a checkpoint file; None with the others, which bring their weights."""
    dtype: Dtype = "float32"
    batch_size: int = 64
    cached_prompts: int = 4096
    """Text embeddings that are kept."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class AestheticConfig:
    """The LAION head on the embeddings of `clip`, which has to be OpenAI's ViT-L/14: `aesthetic`."""

    head: str = "hf-hub:trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
    """The default is the hub's copy of sac+logos+ava1-l14-linearMSE.pth."""


@dataclass(frozen=True)
class ImageRewardConfig:
    """ImageReward-v1.0: `image_reward` and `image_reward_now`, the same number."""

    checkpoint: str = "hf-hub:THUDM/ImageReward/ImageReward.pt"
    med_config: str = "hf-hub:THUDM/ImageReward/med_config.json"
    """The configuration of its text encoder. The tokenizer is the hub's bert-base-uncased."""
    dtype: Dtype = "float32"
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class DinoConfig:
    """DINOv2: `dino`."""

    model: str = "facebook/dinov2-base"
    """Hub id, or a folder in transformers' format."""
    dtype: Dtype = "float32"
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class HpsConfig:
    """Human Preference Score v2: `hps`."""

    checkpoint: str = "hf-hub:xswu/HPSv2/HPS_v2_compressed.pt"
    """HPS_v2.1_compressed.pt beside it is version 2.1."""
    architecture: str = "ViT-H-14"
    """The open_clip model that the checkpoint fills."""
    dtype: Dtype = "float32"
    batch_size: int = 64
    cached_prompts: int = 4096

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class PickScoreConfig:
    """PickScore: `pick_score`."""

    model: str = "yuvalkirstain/PickScore_v1"
    """Hub id, or a folder in transformers' format."""
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """Hub id or folder of the tokenizer and of the image processor's settings."""
    dtype: Dtype = "float32"
    batch_size: int = 64
    cached_prompts: int = 4096

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class ScorersConfig:
    """The reward models of a run, those that are None left out."""

    clip: ClipConfig | None = None
    aesthetic: AestheticConfig | None = None
    image_reward: ImageRewardConfig | None = None
    dino: DinoConfig | None = None
    hps: HpsConfig | None = None
    pick_score: PickScoreConfig | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"clip=null: give at least one of {', '.join(names)}")
        if self.aesthetic is not None and self.clip is None:
            raise ValueError("clip=null: give a section, as aesthetic reads the embeddings of clip")

    @property
    def identity(self) -> str:
        """Twelve characters that change with everything the scores depend on, as far as options say it."""
        scoring = {
            name: {key: value for key, value in section.items() if key not in _HOW_IT_RUNS}
            for name, section in asdict(self).items()
            if section is not None
        }
        return hashlib.sha256(json.dumps(scoring, sort_keys=True).encode()).hexdigest()[:12]

    def check_outputs(self, outputs: Collection[str], option: str) -> None:
        """ValueError for the first of these scores that none of the models gives."""
        for section, given in OUTPUTS.items():
            asked = [name for name in outputs if name in given]
            if asked and getattr(self, section) is None:
                raise ValueError(f"{option}.{section}=null: give a section, as {asked[0]!r} is asked for")

    def scorer_parts(self) -> dict[str, tuple[str, ...]]:
        """The scorers that there are by name, and the sections that each is made of."""
        clip = ("clip",) if self.aesthetic is None else ("clip", "aesthetic")
        parts = {"+".join(clip): clip} | {
            name: (name,) for name in OUTPUTS if name not in ("clip", "aesthetic")
        }
        return {name: owned for name, owned in parts.items() if getattr(self, owned[0]) is not None}

    def sources(self) -> dict[str, str]:
        """Where weights and settings come from, by option ("dino.model")."""
        found = {}
        for name, section in asdict(self).items():
            for key in ("model", "pretrained", "head", "checkpoint", "med_config", "processor"):
                if section is not None and section.get(key) is not None:
                    found[f"{name}.{key}"] = section[key]
        return found


def missing_parts(folder: str | Path) -> list[str]:
    """What a folder of the embedded world's reward models lacks."""
    return [part for part in WORLD_PARTS if not (Path(folder) / part).exists()]


def check_files(named: str | Path | ScorersConfig, option: str) -> None:
    """Before anything is loaded: ValueError for a folder without its parts or a checkpoint that is no file.

    What lies on a hub, and whether a file is sound, loading alone can tell.
    """
    if not isinstance(named, ScorersConfig):
        if missing := missing_parts(named):
            needed = ", ".join(WORLD_PARTS)
            raise ValueError(f"{option}={named}: no {missing[0]!r} in it; give a folder with {needed}")
        return
    for key, value in named.sources().items():
        is_file = key.rpartition(".")[2] in ("head", "checkpoint", "med_config")
        if is_file and not value.startswith(HUB) and not Path(value).is_file():
            raise ValueError(f"{option}.{key}={value}: no such file; give one, or {HUB}OWNER/REPOSITORY/FILE")


def _check(section: ClipConfig | ImageRewardConfig | DinoConfig | HpsConfig | PickScoreConfig) -> None:
    if section.dtype not in get_args(Dtype):
        raise ValueError(f"dtype={section.dtype!r}: give one of {', '.join(get_args(Dtype))}")
    if section.batch_size < 1 or section.batch_size % _MULTIPLE:
        raise ValueError(f"batch_size={section.batch_size}: give a multiple of {_MULTIPLE}")
    cached = getattr(section, "cached_prompts", 1)
    if cached < 1:
        raise ValueError(f"cached_prompts={cached}: give an integer >= 1")
