"""Backbones loaded with options, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.contracts import Backbone
from actors.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone(BackboneConfig(str(folder), **options))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def network_of(folder: Path) -> str:
    """The denoiser's folder in a pipeline's."""
    return "transformer" if (folder / "transformer").is_dir() else "unet"
