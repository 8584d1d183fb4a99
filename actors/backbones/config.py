"""The options that a backbone is made from: what training, evaluation and a stored policy all name.

Always true here: equal options make the same backbone; a value that no backbone takes is refused when the
options are made, one that does not fit this backbone when it is loaded. No model library is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from actors.errors import UserError
from rewards_service.scorers_config import ScorersConfig

Dtype = Literal["float32", "bfloat16", "float16"]
Cache = Literal["first_block", "taylorseer"]
DEVICES = "cpu, cuda, mps or xpu, or the second of them as cuda:1"
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:[0-9]+)?")


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen text-to-image model."""

    name: str = "shapes"
    """`shapes` (the embedded world), a hub id, or a folder in diffusers' format."""
    dtype: Dtype = "float32"
    """The weights' type."""
    device: str = "cpu"
    """torch device of the process that holds it, as `is_device` has it."""
    height: int | None = None
    """Pixels; None: what the model was trained for."""
    width: int | None = None
    lora: str | None = None
    """Hub id, folder or safetensors file of a LoRA, fused into the weights when they are loaded."""
    tiny_decoder: str | None = None
    """Hub id or folder of an AutoencoderTiny that decodes previews; final images never."""
    compile: bool = False
    """torch.compile of the denoiser: minutes at the start, faster afterwards on a GPU."""
    cache: Cache | None = None
    """Reuse of a denoiser's inner results from step to step, Flux only and one episode at a time:
    `first_block` (ParaAttention's First Block Cache) or `taylorseer` (arXiv 2503.06923)."""
    scorers: ScorersConfig | str | None = None
    """The reward models, or the folder of an embedded world's; None: those that come with this one."""

    def __post_init__(self) -> None:
        caches = get_args(Cache)
        _accept("dtype", self.dtype, self.dtype in get_args(Dtype), ", ".join(get_args(Dtype)))
        _accept("cache", self.cache, self.cache in (None, *caches), ", ".join((*caches, "null")))
        _accept("device", self.device, is_device(self.device), DEVICES)
        for option in ("height", "width"):
            pixels = getattr(self, option)
            _accept(option, pixels, pixels is None or pixels >= 1, "a number of pixels, or null")

    def latent_size(self, own: tuple[int, int], pixels: int, patch: int = 1) -> tuple[int, int]:
        """Height and width of the latents; `own` are those the model was trained for.

        pixels: of a latent's side; patch: latents on the side of what the denoiser takes as one token.
        Raises UserError for a resolution that does not divide into them.
        """
        sides = []
        for option, own_side in zip(("height", "width"), own, strict=True):
            asked = getattr(self, option)
            fits = asked is None or asked % (pixels * patch) == 0
            _accept(option, asked, fits, f"a multiple of {pixels * patch} with this backbone")
            sides.append(own_side if asked is None else asked // pixels)
        return sides[0], sides[1]

    @classmethod
    def from_metadata(cls, stored: dict[str, Any]) -> BackboneConfig:
        """The options a policy was stored with, but the reward models, which are its training's.

        Raises TypeError for one that does not exist.
        """
        if unknown := set(stored) - set(get_type_hints(cls)):
            raise TypeError(f"unknown option backbone.{min(unknown)}")
        return cls(**{option: value for option, value in stored.items() if option != "scorers"})


def is_device(name: str) -> bool:
    """Whether it is the name of a device, which need not be there."""
    return _DEVICE.fullmatch(name) is not None


def _accept(option: str, value: object, accepted: bool, what: str) -> None:
    if not accepted:
        raise UserError(f"backbone.{option} is {value!r}; accepted: {what}")
