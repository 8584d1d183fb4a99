"""A backbone without its weights: the networks that its configs describe, on torch's meta device.

Always true here: nothing is downloaded and no weight is read; shapes and types are those that loading the
same options would give. A model whose configs are not on this machine is known if it is one of the
published ones.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import ARCHITECTURES as BACKBONES
from actors.backbones.loading import LoadedBackbone, quiet
from actors.errors import UserError
from evaluation.architectures import (
    flux_dev,
    flux_schnell,
    made_on,
    stable_diffusion,
    stable_diffusion_xl,
)

META = "meta"
#: Published models by hub id, and pixels a side.
KNOWN: dict[str, tuple[Callable[[str, torch.dtype, int], Any], int]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (stable_diffusion, 512),
    "stabilityai/stable-diffusion-xl-base-1.0": (stable_diffusion_xl, 1024),
    "stabilityai/sdxl-turbo": (stable_diffusion_xl, 512),
    "black-forest-labs/FLUX.1-schnell": (flux_schnell, 1024),
    "black-forest-labs/FLUX.1-dev": (flux_dev, 1024),
}


def weightless_backbone(config: BackboneConfig) -> tuple[Any, LoadedBackbone]:
    """The pipeline and the backbone of these options on the meta device.

    Raises UserError for a model whose configs are neither here nor known.
    """
    folder = config_folder(config.name)
    dtype = getattr(torch, config.dtype)
    if folder is not None:
        pipeline = _from_folder(folder, dtype)
    elif config.name in KNOWN:
        build, pixels = KNOWN[config.name]
        pipeline = build(META, dtype, pixels)
    else:
        raise UserError(
            f"backbone.name={config.name!r}: its size is not known here; give a folder in diffusers' format, "
            f"download it, or one of {', '.join(KNOWN)}"
        )
    kind = BACKBONES[type(pipeline).__name__]
    return pipeline, kind(pipeline, config, "weightless", None)


def config_folder(name: str) -> Path | None:
    """Where the configs of a pipeline lie: the embedded world's, a folder, or the hub's cache."""
    if name == "shapes":
        from shapes import weights

        return Path(weights.PATH) / "pipeline"
    if Path(name).is_dir():
        return Path(name)
    cached = try_to_load_from_cache(name, "model_index.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a folder in diffusers' format; of its files only the configs are read."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = index.get("_class_name")
    if kind not in BACKBONES:
        raise UserError(f"backbone.name={str(folder)!r} is a {kind}; accepted: {', '.join(BACKBONES)}")
    architecture = BACKBONES[kind]
    parts: dict[str, Any] = {"feature_extractor": None} if "feature_extractor" in index else {}
    for part in architecture.networks:
        parts[part] = _network(_class(index[part]), folder / part, dtype)
    parts["scheduler"] = _class(index["scheduler"]).from_pretrained(folder, subfolder="scheduler")
    for part in (part for part in index if part.startswith("tokenizer")):
        parts[part] = _class(index[part]).from_pretrained(folder, subfolder=part)
    return architecture.pipeline_class(**parts, **architecture.pipeline_options)


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One network, without weights."""
    with made_on(META, dtype), quiet():
        if hasattr(kind, "load_config"):  # diffusers
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))


def _class(named: tuple[str, str]) -> Any:
    library, name = named
    return getattr(importlib.import_module(library), name)
