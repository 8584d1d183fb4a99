"""A very small network that forecasts where a clean prediction will still change, and its file.

Always true here: the forecast is local and above 0; the network sees what the engine has at a decision
anyway (the clean prediction, the one before it if there is one, the timestep) and nothing else; a file is
written aside and renamed, so that it is whole or not there. `region_training.py` fits it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from actors.errors import UserError
from actors.files import written_aside

WINDOW = 3
"""Changes are means over so many positions a side."""
SMALL = 0.01
"""Changes well below this, in latent units, are all alike."""
TIMESTEPS = 1000.0
ACCEPTED = "a file that `python -m actors.region_training` has written"


def local_change(first_BCHW: torch.Tensor, second_BCHW: torch.Tensor) -> torch.Tensor:
    """B x H x W: mean absolute difference over the channels and a window of 3 x 3 positions.

    At the border it is the mean over those that are there.
    """
    change_B1HW = (first_BCHW.float() - second_BCHW.float()).abs().mean(dim=1, keepdim=True)
    mean_B1HW = functional.avg_pool2d(change_B1HW, WINDOW, 1, WINDOW // 2, count_include_pad=False)
    return mean_B1HW[:, 0]


def log_change(change: torch.Tensor) -> torch.Tensor:
    """Changes from 0 up on the scale on which they are forecast."""
    return (change + SMALL).log()


class RemainingChangeHead(nn.Module):
    """Forecasts `local_change(clean prediction now, clean prediction at the end)`, in latent units.

    channels: of the latents; width: of the hidden layers. Convolutions alone: it takes any size.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels + 3, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(
        self,
        clean_BCHW: torch.Tensor,
        previous_BCHW: torch.Tensor,
        known_B: torch.Tensor,
        timestep_B: torch.Tensor,
    ) -> torch.Tensor:
        """B x H x W. Rows of previous_BCHW count where known_B is True."""
        known_B111 = known_B.view(-1, 1, 1, 1).to(clean_BCHW.dtype)
        planes_B211 = torch.cat([known_B111, timestep_B.view(-1, 1, 1, 1) / TIMESTEPS], dim=1)
        planes_B2HW = planes_B211.expand(-1, -1, *clean_BCHW.shape[2:])
        step_BCHW = known_B111 * (clean_BCHW - previous_BCHW)
        size_B1HW = known_B111 * log_change(local_change(clean_BCHW, previous_BCHW))[:, None]
        inputs = torch.cat([clean_BCHW, step_BCHW, size_B1HW, planes_B2HW], dim=1)
        return self.layers(inputs)[:, 0].exp()

    def forecast(
        self, clean_CHW: torch.Tensor, previous_CHW: torch.Tensor | None, timestep: float
    ) -> torch.Tensor:
        """H x W, of one image."""
        known_B = torch.tensor([previous_CHW is not None], device=clean_CHW.device)
        timestep_B = torch.tensor([timestep], device=clean_CHW.device)
        before_CHW = clean_CHW if previous_CHW is None else previous_CHW
        return self(clean_CHW[None], before_CHW[None], known_B, timestep_B)[0]


def save_region_head(path: str | Path, head: RemainingChangeHead, *, backbone: str) -> None:
    """Write safetensors, with the head's sizes and its backbone's identity in the header."""
    header = {"channels": head.channels, "width": head.width, "backbone": backbone}
    weights = {name: values.detach().cpu().contiguous() for name, values in head.state_dict().items()}
    with written_aside(Path(path)) as aside:
        save_file(weights, aside, metadata={"region_head": json.dumps(header)})


def load_region_head(path: str | Path, *, channels: int, backbone: str) -> RemainingChangeHead:
    """The head, in eval mode on the CPU.

    channels, backbone: of the latents it is to be used on. Raises UserError if the file is missing or
    damaged, or was fitted on another backbone.
    """
    option = f"engine.refine_head is {str(path)!r}"
    if not Path(path).is_file():
        raise UserError(f"{option}, which is no file; accepted: {ACCEPTED}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["region_head"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        head = RemainingChangeHead(header["channels"], header["width"])
        head.load_state_dict(weights)
        fitted_on: str = header["backbone"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{option} and is damaged ({reason}); accepted: {ACCEPTED}") from error
    if head.channels != channels:
        raise UserError(
            f"{option}, for latents of {head.channels} channels; accepted with this backbone: {channels}"
        )
    if fitted_on != backbone:
        raise UserError(f"{option}, fitted on {fitted_on}; accepted: one fitted on {backbone}")
    return head.eval().requires_grad_(False)
