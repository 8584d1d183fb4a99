"""A pipeline that the user has loaded, as a backbone.

Always true here: the pipeline is prepared once, however often it is asked for, and keeps working as before:
what is added to its networks (attention processors, a hook) leaves their outputs as they are.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import StableDiffusionPipeline

from actors.backbones.stable_diffusion import StableDiffusionBackbone, weights_digest
from actors.contracts import Backbone
from actors.errors import UserError

BACKBONES = {StableDiffusionPipeline: StableDiffusionBackbone}
"""Which backbone a kind of pipeline makes, given the pipeline and an identity."""
NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "vae")
"""The parts of a pipeline that make its images."""
UNKNOWN = "unknown"
"""The identity of weights that cannot be told to be any folder's."""

_State = tuple[torch.device, torch.dtype, tuple[torch.nn.Module, ...]]
_prepared: WeakKeyDictionary[Any, tuple[_State, Backbone]] = WeakKeyDictionary()


def backbone_of(pipeline: Any) -> Backbone:
    """The pipeline's networks behind the interface of `actors.contracts.Backbone`.

    Its identity is `load_backbone`'s, read from the folder that the networks were loaded from. Where that
    cannot be known (parts of several folders, a single file, networks made in Python), it is UNKNOWN.
    Raises UserError for a kind of pipeline that no backbone stands for.
    """
    make = next((make for kind, make in BACKBONES.items() if isinstance(pipeline, kind)), None)
    if make is None:
        accepted = ", ".join(kind.__name__ for kind in BACKBONES)
        raise UserError(f"pipeline is a {type(pipeline).__name__}; accepted: {accepted}")
    state = pipeline.device, pipeline.dtype, tuple(_networks(pipeline))
    if pipeline not in _prepared or _prepared[pipeline][0] != state:
        _prepared[pipeline] = state, make(pipeline, identity_of(pipeline))
    return _prepared[pipeline][1]


def identity_of(pipeline: Any) -> str:
    """`name@digest` of the folder that all networks were loaded from, or UNKNOWN."""
    names = [getattr(network.config, "_name_or_path", "") for network in _networks(pipeline)]
    folders = {Path(name).absolute().parent for name in names}
    if len(folders) > 1 or not all(name and Path(name).is_dir() for name in names):
        return UNKNOWN
    folder = folders.pop()
    try:
        return f"{folder.name}@{weights_digest(folder)}"
    except OSError:
        return UNKNOWN


def warn_if_unknown(identity: str) -> bool:
    """Say that nobody can tell whether the policy fits; True if so."""
    if identity == UNKNOWN:
        warnings.warn(
            "The pipeline's networks were not loaded from one folder, so it cannot be checked that the"
            " policy was trained on them.",
            stacklevel=3,
        )
    return identity == UNKNOWN


def _networks(pipeline: Any) -> list[Any]:
    parts = (getattr(pipeline, name, None) for name in NETWORKS)
    return [part for part in parts if part is not None]
