"""What the backbones read from disk or the hub: networks that are whole and of the right kind, and LoRAs.

Always true here: nothing is unpickled; a weight that is missing, which the libraries would replace by random
numbers, is the user's mistake and one line. An identity is made of the files' content, never of paths.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from huggingface_hub import snapshot_download

from actors.errors import UserError

_WINDOW_BYTES = 1 << 20
_LORA_NAME = "pytorch_lora_weights.safetensors"
_LIBRARIES = ("diffusers", "transformers")


def load_networks(
    folder: Path,
    index: Mapping[str, Any],
    accepted: Mapping[str, tuple[str, ...]],
    dtype: torch.dtype,
    source: str,
) -> dict[str, Any]:
    """The networks of a pipeline's folder by name. `index` is its model_index.json, `accepted` the classes.

    Raises UserError for another class or a missing weight, the libraries' own errors for damaged files.
    """
    networks = {}
    for part, kinds in accepted.items():
        library, kind = index.get(part) or (None, None)
        if library not in _LIBRARIES or kind not in kinds:
            raise UserError(f"backbone is {source!r}, its {part} is a {kind}; accepted: {' or '.join(kinds)}")
        network_class = getattr(importlib.import_module(library), kind)
        network, report = network_class.from_pretrained(
            folder,
            subfolder=part,
            output_loading_info=True,
            **{"torch_dtype" if library == "diffusers" else "dtype": dtype},
        )
        if report["missing_keys"]:
            named, missing = part.replace("_", " "), min(report["missing_keys"])
            raise UserError(f"backbone is {source!r}, its {named} lacks {missing}; accepted: all weights")
        networks[part] = network
    return networks


def check_network(kind: str, config: Any, accepted: Mapping[str, object], identity: str) -> None:
    """Raise UserError for the first of a network's config entries that is not as the pipeline needs it."""
    for name, wanted in accepted.items():
        found = config.get(name)
        if found != wanted:
            raise UserError(f"backbone {identity} has a {kind} with {name} {found}; accepted: {wanted}")


def load_tiny_decoder(source: str, folder: Path, channels: int, dtype: torch.dtype) -> AutoencoderTiny:
    """The tiny decoder for latents of so many channels; UserError for one of another model family."""
    tiny, report = AutoencoderTiny.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        missing = min(report["missing_keys"])
        raise UserError(f"backbone.tiny_decoder is {source!r} and lacks {missing}; accepted: all weights")
    if tiny.config.latent_channels != channels:
        raise UserError(
            f"backbone.tiny_decoder is {source!r} for {tiny.config.latent_channels} latent channels;"
            f" accepted with this backbone: {channels}"
        )
    return tiny


def lora_file(source: str) -> Path:
    """The one safetensors file that a LoRA's hub id, folder or file name stands for; UserError if unclear."""
    path = fetched(source)
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    chosen = [file for file in files if file.name == _LORA_NAME] or files
    if len(chosen) != 1:
        raise UserError(
            f"backbone.lora is {source!r} and has {len(files)} safetensors files;"
            f" accepted: a folder with one, or with {_LORA_NAME}, or the file itself"
        )
    return chosen[0]


def fuse_lora(pipeline: Any, source: str, file: Path) -> None:
    """Add a LoRA to the pipeline's weights, as diffusers does it, and forget it.

    Raises UserError for a LoRA that fits none of the pipeline's layers.
    """
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
    if not pipeline.get_list_adapters():
        raise UserError(f"backbone.lora is {source!r} and fits no layer; accepted: a LoRA for this backbone")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def fetched(source: str) -> Path:
    """A local file or folder as it is, a hub repository's safetensors and configs downloaded."""
    local = Path(source)
    return (
        local
        if local.exists()
        else Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
    )


def pipeline_digest(folder: Path, parts: Iterable[str], windows: int) -> str:
    """A short hash of the networks' configs, and of their weight files' sizes and so many MiB of each.

    windows: evenly spaced from the file's beginning on. One is enough where fine-tuning changes the first
    tensors; SDXL's first megabytes are an embedding that it often leaves as it is.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update((folder / part / "config.json").read_bytes())
        for path in sorted((folder / part).glob("*.safetensors")):
            size = path.stat().st_size
            with path.open("rb") as file:
                for window in range(windows):
                    file.seek(size * window // windows)
                    digest.update(file.read(_WINDOW_BYTES))
            digest.update(f"{part}/{path.name} {size}".encode())
    return digest.hexdigest()[:12]


def weights_digest(path: Path) -> str:
    """A short hash of one safetensors file, or of all in a folder, in full: they are small."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
