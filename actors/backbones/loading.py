"""Loads a backbone: finds out what kind of pipeline it is, and puts together what the options ask for.

Always true here: models are loaded by diffusers' own `from_pretrained`, and what cannot be loaded is one
line for the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from actors.backbones.config import BackboneConfig
from actors.backbones.files import (
    fetched,
    fuse_lora,
    load_networks,
    load_tiny_decoder,
    lora_file,
    pipeline_digest,
    weights_digest,
)
from actors.backbones.flux import FluxBackbone
from actors.backbones.stable_diffusion import StableDiffusionBackbone
from actors.backbones.stable_diffusion_xl import StableDiffusionXLBackbone
from actors.errors import UserError

LoadedBackbone = StableDiffusionBackbone | StableDiffusionXLBackbone | FluxBackbone

ARCHITECTURES: dict[str, type[LoadedBackbone]] = {
    "StableDiffusionPipeline": StableDiffusionBackbone,
    "LatentConsistencyModelPipeline": StableDiffusionBackbone,
    "StableDiffusionXLPipeline": StableDiffusionXLBackbone,
    "FluxPipeline": FluxBackbone,
}
"""By the class that model_index.json names."""
ACCEPTED = "shapes, a folder in diffusers' format, or a hub id of one"


def load_backbone(config: BackboneConfig) -> LoadedBackbone:
    """The backbone of these options.

    Its identity is NAME@DIGEST, of the networks' configs and weights, then whatever was asked for besides
    that changes images or previews: +HEIGHTxWIDTH, +lora:NAME@DIGEST, +tiny:NAME@DIGEST, +CACHE. dtype,
    device and compile change rounding only and are no part of it.

    Raises UserError if anything is missing, damaged, or of a kind that is not accepted.
    """
    return load_with_pipeline(config)[1]


def load_with_pipeline(config: BackboneConfig) -> tuple[Any, LoadedBackbone]:
    """The backbone, and before it the diffusers pipeline that it shares its networks with."""
    with quiet(), _told("backbone", config.name, ACCEPTED):
        return _load(config)


def _load(config: BackboneConfig) -> tuple[Any, LoadedBackbone]:
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"backbone.device is {config.device!r}, which torch does not find here"
            f" ({str(error).splitlines()[0]}); accepted: a device of this machine, such as cpu"
        ) from error
    source = config.name
    if source == "shapes":
        from shapes import weights  # the world is only needed by those who name it

        source = str(Path(weights.PATH) / "pipeline")
    index = DiffusionPipeline.load_config(source)
    kind = index.get("_class_name")
    if kind not in ARCHITECTURES:
        raise UserError(f"backbone is {config.name!r}, a {kind}; accepted: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[kind]
    if config.cache is not None and architecture is not FluxBackbone:
        raise UserError(f"backbone.cache is {config.cache!r}; accepted with a {kind}: null")
    local, dtype = Path(source), getattr(torch, config.dtype)
    folder = local if local.is_dir() else Path(DiffusionPipeline.download(source))
    networks = load_networks(folder, index, architecture.networks, dtype, config.name)
    pipeline = architecture.pipeline_class.from_pretrained(
        folder, torch_dtype=dtype, **networks, **architecture.pipeline_options
    )
    identity = f"{local.name}@{pipeline_digest(folder, architecture.networks, architecture.identity_windows)}"
    identity += size_suffix(config)
    if config.lora is not None:
        with _told("backbone.lora", config.lora, "a hub id, folder or safetensors file of a LoRA for it"):
            file = lora_file(config.lora)
            fuse_lora(pipeline, config.lora, file)
            identity += f"+lora:{Path(config.lora).name}@{weights_digest(file)}"
    tiny_decoder = None
    if config.tiny_decoder is not None:
        with _told("backbone.tiny_decoder", config.tiny_decoder, "a folder or hub id of an AutoencoderTiny"):
            path = fetched(config.tiny_decoder)
            channels = pipeline.vae.config.latent_channels
            tiny_decoder = load_tiny_decoder(config.tiny_decoder, path, channels, dtype).to(config.device)
            identity += f"+tiny:{Path(config.tiny_decoder).name}@{weights_digest(path)}"
    if config.cache is not None:
        identity += f"+{config.cache}"
    pipeline = pipeline.to(config.device)
    return pipeline, architecture(pipeline, config, identity, tiny_decoder)


def size_suffix(config: BackboneConfig) -> str:
    """+HEIGHTxWIDTH of an identity, where another size than the model's own was asked for."""
    if config.height is None and config.width is None:
        return ""
    return f"+{config.height or ''}x{config.width or ''}"


@contextmanager
def _told(option: str, value: str, accepted: str) -> Iterator[None]:
    """Whatever goes wrong inside, as one line that names the option."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # diffusers, the hub and safetensors raise a dozen kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{option} is {value!r} and cannot be loaded ({reason}); accepted: {accepted}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Loading takes a second and is no news: without diffusers' progress bars and remarks."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
