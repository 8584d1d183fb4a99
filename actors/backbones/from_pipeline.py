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

from actors.backbones.config import BackboneConfig
from actors.backbones.files import pipeline_digest
from actors.backbones.loading import ARCHITECTURES, LoadedBackbone, size_suffix
from actors.errors import UserError

UNKNOWN = "unknown"
"""The identity of weights that cannot be told to be any folder's."""

_State = tuple[torch.device, torch.dtype, int | None, int | None, tuple[torch.nn.Module, ...]]
_prepared: WeakKeyDictionary[Any, tuple[_State, LoadedBackbone]] = WeakKeyDictionary()


def backbone_of(pipeline: Any, config: BackboneConfig | None = None) -> LoadedBackbone:
    """The pipeline's networks behind the interface of `actors.contracts.Backbone`.

    config: the options of a policy's backbone, of which height and width apply; the rest is as the pipeline
    was loaded. Its identity is `load_backbone`'s, read from the folder that the networks were loaded from.
    Where that cannot be known (parts of several folders, a single file, networks made in Python), it is
    UNKNOWN. Raises UserError for a kind of pipeline that no backbone stands for.
    """
    architecture = _architecture(pipeline)
    asked = config or BackboneConfig()
    networks = tuple(getattr(pipeline, part) for part in architecture.networks)
    state = pipeline.device, pipeline.dtype, asked.height, asked.width, networks
    if pipeline not in _prepared or _prepared[pipeline][0] != state:
        size = BackboneConfig(height=asked.height, width=asked.width)
        identity = identity_of(pipeline)
        if identity != UNKNOWN:
            identity += size_suffix(size)
        _prepared[pipeline] = state, architecture(pipeline, size, identity, None)
    return _prepared[pipeline][1]


def identity_of(pipeline: Any) -> str:
    """`NAME@DIGEST` of the folder that all networks were loaded from, or UNKNOWN."""
    architecture = _architecture(pipeline)
    networks = [getattr(pipeline, part) for part in architecture.networks]
    names = [getattr(network.config, "_name_or_path", "") for network in networks]
    folders = {Path(name).absolute().parent for name in names}
    if len(folders) > 1 or not all(name and Path(name).is_dir() for name in names):
        return UNKNOWN
    folder = folders.pop()
    try:
        digest = pipeline_digest(folder, architecture.networks, architecture.identity_windows)
    except OSError:
        return UNKNOWN
    return f"{folder.name}@{digest}"


def warn_if_unknown(identity: str) -> bool:
    """Say that nobody can tell whether the policy fits; True if so."""
    if identity == UNKNOWN:
        warnings.warn(
            "The pipeline's networks were not loaded from one folder, so it cannot be checked that the"
            " policy was trained on them.",
            stacklevel=3,
        )
    return identity == UNKNOWN


def _architecture(pipeline: Any) -> type[LoadedBackbone]:
    """By the pipeline's class or one that it is derived from."""
    for kind in type(pipeline).__mro__:
        if kind.__name__ in ARCHITECTURES:
            return ARCHITECTURES[kind.__name__]
    raise UserError(f"pipeline is a {type(pipeline).__name__}; accepted: {', '.join(ARCHITECTURES)}")
