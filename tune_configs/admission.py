"""How many trials may run at a time: as many as fit into the memory that the first one was seen to need.

CPUs and GPUs are Ray's to count, by what a trial asks for. Memory is measured: the first trial runs alone
until it has reported what its processes hold at most, and what its memos may still grow by.

Always true here: one trial may always run; a limit that was found is never raised, as trials only grow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GIB = 2**30
MEMORY = "memory"
"""Of a trial's report: bytes its processes will hold at most."""
FREE = "memory_free"
"""Bytes free on its machine while it runs."""
GPU = "gpu_share"
"""Of a trial's report: share of a GPU's memory that its processes will hold at most, 0 without one."""
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Of both versions of control groups: what may be used, what is, and how much of that are pages of files that
the kernel takes back when it needs them.
"""


@dataclass
class Admission:
    """The limit for one sweep: nodes machines with `gpus` GPUs in all; most: what the user allows."""

    reserve_gib: float
    nodes: int = 1
    gpus: float = 0.0
    most: int | None = None
    limit: int | None = None

    def admits(self, running: int) -> bool:
        """Whether another trial may start beside those that run: one, until the first has reported."""
        return running == 0 or running < (self.limit or 1)

    def learn(self, report: Mapping[str, Any], running: int) -> None:
        """Take what one of the running trials reports."""
        if MEMORY not in report:
            return
        fits = running + math.floor((report[FREE] - self.reserve_gib * GIB) / max(report[MEMORY], 1.0))
        limits = [max(fits, 1) * self.nodes]
        if report.get(GPU):
            limits.append(max(self._on_gpus(report[GPU]), 1))
        limits += [known for known in (self.limit, self.most) if known is not None]
        self.limit = min(limits)

    def _on_gpus(self, share: float) -> int:
        """How many trials with this share of a GPU fit: a rest of one card is no use to another's."""
        if share > 1:
            return math.floor(self.gpus / share)
        return math.floor(self.gpus) * math.floor(1 / share)


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that are free on this machine, within the container's limit if there is one."""
    available: int = psutil.virtual_memory().available
    for limit, used, stat, pages in _LIMITS:
        if (file := cgroup / limit).is_file() and (text := file.read_text().strip()).isdigit():
            told = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
            held = int((cgroup / used).read_text()) - int(told.get(pages, 0))
            available = min(available, int(text) - held)
    return available
