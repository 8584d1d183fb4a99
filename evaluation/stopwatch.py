"""What a benchmark needs to tell time and memory: a backbone that is timed, and the process's peak memory.

Always true here: seconds on a GPU are the device's own, between events around each call, so that nothing
waits that would not wait without the stopwatch.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from actors.contracts import Backbone, Conditioning, Denoised


class TimedBackbone:
    """A backbone, and the seconds of its denoiser calls."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._calls: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        """The backbone's own call, timed."""
        start = self._now()
        denoised = self._backbone.denoise(
            latents_BCHW, timesteps_B, conditioning, guidance_scale_B, attention=attention
        )
        self._calls.append((start, self._now()))
        return denoised

    def take_seconds(self) -> list[float]:
        """Of each call since the last time this was asked."""
        calls, self._calls = self._calls, []
        if self._backbone.device.type != "cuda":
            return [end - start for start, end in calls]
        torch.cuda.synchronize(self._backbone.device)
        return [start.elapsed_time(end) / 1000.0 for start, end in calls]

    def _now(self) -> Any:
        if self._backbone.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._backbone.device))
        return event


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far; a process's resident set cannot forget."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """The most that torch allocated on a GPU since the reset; on a CPU the largest resident set so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
