"""How large reward models are: from safetensors headers and open_clip's configs, else as published.

Always true here: no weight is read and nothing is downloaded; a model of unknown size is a UserError that
names its option.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache

from actors.errors import UserError
from evaluation.architectures import made_on
from rewards_service.scorers_config import ScorersConfig

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PIXELS = 224
"""What every published reward model shrinks its images to."""
BLOCK = 10
"""Tensors of a transformer block's width that live at once in its MLP: the residual, what is normalised, and
four times the width twice, before and after the nonlinearity."""
WORLD_MIB = 1.0
"""Activations an image of the embedded world's reward models, which take 64 x 64 pixels."""
AESTHETIC = 927_969
"""LAION's linear head: 768-1024-128-64-16-1 with biases."""


@dataclass(frozen=True)
class Published:
    """parameters, counted on the published config's architecture; tokens and width of its image tower."""

    parameters: int
    tokens: int
    width: int


#: By what options name them. Sources: the repositories' config.json, and for ImageReward med_config.json of
#: THUDM/ImageReward with BLIP's ViT-L/16. tests/evaluation/test_memory_audit.py counts them again.
PUBLISHED = {
    "facebook/dinov2-small": Published(22_056_576, 257, 384),
    "facebook/dinov2-base": Published(86_580_480, 257, 768),
    "facebook/dinov2-large": Published(304_368_640, 257, 1024),
    "hf-hub:THUDM/ImageReward/ImageReward.pt": Published(446_665_953, 197, 1024),
    "yuvalkirstain/PickScore_v1": Published(986_109_441, 257, 1280),
}


def scorer_weights(scorers: ScorersConfig | str | None) -> dict[str, int]:
    """Bytes of each reward model as it is loaded."""
    if not isinstance(scorers, ScorersConfig):
        from shapes import weights

        folder = Path(weights.PATH if scorers is None else scorers)
        files = [path for path in sorted(folder.rglob("*.safetensors")) if "pipeline" not in path.parts]
        return {str(path.relative_to(folder).parts[0]): 4 * stored_parameters(path) for path in files}
    found = {name: size.parameters * BYTES[dtype] for name, (size, dtype) in _sections(scorers).items()}
    if scorers.aesthetic is not None:
        found["aesthetic"] = AESTHETIC * BYTES["float32"]
    return found


def scorer_activations(scorers: ScorersConfig | str | None, batch: int) -> tuple[float, float]:
    """Bytes (of the call, of each image in it) of the reward model that takes most, with `batch` images."""
    if not isinstance(scorers, ScorersConfig):
        return 0.0, WORLD_MIB * 2**20
    images = 2 * 3 * PIXELS**2 * BYTES["float32"]
    towers = [BLOCK * size.tokens * size.width * BYTES[dtype] for size, dtype in _sections(scorers).values()]
    return 0.0, images + max(towers)


def stored_parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(torch.Size(shape).numel() for shape in shapes)


def _sections(scorers: ScorersConfig) -> dict[str, tuple[Published, str]]:
    found: dict[str, tuple[Published, str]] = {}
    if (clip := scorers.clip) is not None:
        found["clip"] = _open_clip(clip.model, "clip.model"), clip.dtype
    if (dino := scorers.dino) is not None:
        found["dino"] = _named(dino.model, "dino.model"), dino.dtype
    if (reward := scorers.image_reward) is not None:
        found["image_reward"] = _named(reward.checkpoint, "image_reward.checkpoint"), reward.dtype
    if (hps := scorers.hps) is not None:
        found["hps"] = _open_clip(hps.architecture, "hps.architecture"), hps.dtype
    if (pick := scorers.pick_score) is not None:
        found["pick_score"] = _named(pick.model, "pick_score.model"), pick.dtype
    return found


def _open_clip(name: str, option: str) -> Published:
    """A model that open_clip has a config of, or a folder with one."""
    config = open_clip.get_model_config(name)
    if config is None and Path(name, "open_clip_config.json").is_file():
        config = json.loads(Path(name, "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    if config is None:
        return _named(name, option)
    with made_on("meta", torch.float32):
        model = open_clip.model.CLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    vision = config["vision_cfg"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    return Published(sum(each.numel() for each in model.parameters()), tokens, vision["width"])


def _named(name: str, option: str) -> Published:
    """A published one, or weights that lie here: a folder, a file, the hub's cache."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    folder = Path(name)
    if not folder.exists():
        cached = try_to_load_from_cache(name.removeprefix("hf-hub:"), "config.json") if "/" in name else None
        folder = Path(cached).parent if isinstance(cached, str) else folder
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    if not files or not files[0].is_file():
        raise UserError(f"backbone.scorers.{option}={name}: its size is not known before it is here")
    parameters = sum(
        stored_parameters(path) if path.suffix == ".safetensors" else path.stat().st_size // BYTES["float32"]
        for path in files
    )
    return Published(parameters, 257, 1024)
