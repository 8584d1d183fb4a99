"""Where scorers' weights and settings come from: files, folders, and hub repositories.

Always true: nothing is unpickled. A checkpoint is safetensors, or a torch file read with `weights_only`; a
model whose weights are not all there is refused, as what is missing would be random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.image_processing_utils import BaseImageProcessor, get_size_dict

from rewards_service.scorers.batches import Pixels
from rewards_service.scorers_config import HUB


def checkpoint_file(name: str | Path) -> Path:
    """A file, or one of a hub repository (hf-hub:OWNER/REPOSITORY/FILE), downloaded unless it is cached."""
    if not str(name).startswith(HUB):
        if not Path(name).is_file():
            raise ValueError(f"no such file; accepted: a file, or {HUB}OWNER/REPOSITORY/FILE")
        return Path(name)
    parts = str(name).removeprefix(HUB).split("/", 2)
    if len(parts) < 3:
        raise ValueError(f"names no file; accepted: {HUB}OWNER/REPOSITORY/FILE")
    return Path(hf_hub_download("/".join(parts[:2]), parts[2]))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; of those under "state_dict", where it has such an entry."""
    if Path(path).suffix == ".safetensors":
        return load_file(str(path))
    stored = torch.load(path, map_location="cpu", weights_only=True)
    weights = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("holds something else than named tensors; accepted: a state dict")
    return weights


def fill(model: nn.Module, weights: Mapping[str, Tensor], parts: Sequence[str]) -> None:
    """Load weights into a model. All of its `parts` (prefixes of names) must be there; the rest may lack."""
    missing, _ = model.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if name.startswith(tuple(parts))]
    if lacking:
        raise ValueError(f"no {lacking[0]!r} in it; accepted: weights of {type(model).__name__}")


def pretrained_model(kind: Any, name: str | Path) -> Any:
    """A transformers model of class `kind` from a hub id or a folder, in float32, nothing left random."""
    given, accepted = AutoConfig.from_pretrained(str(name)).model_type, kind.config_class.model_type
    if given != accepted:  # transformers would warn, load what has the same name and leave the rest random
        raise ValueError(f"is a {given!r} model; accepted: {accepted!r}")
    model, found = kind.from_pretrained(str(name), output_loading_info=True)
    if found["missing_keys"]:
        lacking = min(found["missing_keys"])
        raise ValueError(f"no {lacking!r} among its weights; accepted: those of a {kind.__name__}")
    return model.float()


def processor_pixels(name: str | Path) -> Pixels | None:
    """What preprocessor_config.json of a hub id or a folder says of images; None for a folder without it."""
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        return None
    config, _ = BaseImageProcessor.get_image_processor_dict(str(name))
    mean, std = config["image_mean"], config["image_std"]
    resample = Image.Resampling(config["resample"])
    size = get_size_dict(config["size"], default_to_square=False)
    if "shortest_edge" not in size:
        return Pixels(size["height"], mean, std, resample=resample, fit="squash")
    short = size["shortest_edge"]
    cropped = config.get("do_center_crop", True)
    crop = get_size_dict(config["crop_size"], param_name="crop_size")["height"] if cropped else short
    return Pixels(crop, mean, std, short_side=short, resample=resample)
