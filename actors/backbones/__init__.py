"""Backbones: frozen text-to-image models behind the one interface of `actors.contracts.Backbone`.

Always true here: models are loaded by diffusers' own `from_pretrained`, and what cannot be loaded is one
line for the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging

from actors.backbones.stable_diffusion import StableDiffusionBackbone
from actors.errors import UserError

__all__ = ["StableDiffusionBackbone", "load_backbone"]

ACCEPTED = "shapes, a StableDiffusionPipeline folder, or a hub id of one"


def load_backbone(
    name_or_path: str, *, dtype: str = "float32", device: str = "cpu"
) -> StableDiffusionBackbone:
    """Load `shapes` (the embedded world's own model), a diffusers folder or a hub id.

    Raises UserError if it is missing, damaged or no Stable Diffusion pipeline.
    """
    try:
        source = name_or_path
        if name_or_path == "shapes":
            from shapes import weights  # the world is only needed by those who name it

            source = str(Path(weights.PATH) / "pipeline")
        with _quiet():
            return StableDiffusionBackbone.from_pretrained(source, dtype=dtype, device=device)
    except UserError:
        raise
    except Exception as error:  # diffusers, the hub and safetensors raise a dozen kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"backbone is {name_or_path!r} and cannot be loaded ({reason}); accepted: {ACCEPTED}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading takes a second and is no news: without diffusers' progress bars and remarks."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
