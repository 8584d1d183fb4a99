"""What a trial's processes hold, asked in each of them.

Always true here: it is the most, as it was so far and as far as memos may still grow.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from actors.memo import Memo


class Footprint(NamedTuple):
    """Of one process: most bytes it has held so far, those that its memos may still take, and its share of a
    GPU's memory with them. Features are kept on the CPU, latents where the denoiser is, so both may grow.
    """

    resident: float
    to_come: float
    gpu: float


def footprint(memos: Iterable[Memo[Any] | None]) -> Footprint:
    """Of this process, which has these memos."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    to_come = sum(memo.bytes_to_come for memo in memos if memo is not None)
    if not torch.cuda.is_initialized():
        return Footprint(resident, to_come, 0.0)
    of_all = torch.cuda.mem_get_info()[1]
    return Footprint(resident, to_come, (torch.cuda.max_memory_reserved() + to_come) / of_all)


def runners_footprint(runner: Any) -> Footprint:
    """Of an env runner's process, asked there."""
    collector = runner.collector
    return footprint(() if collector is None else (collector.engine.memo, collector.memo))
