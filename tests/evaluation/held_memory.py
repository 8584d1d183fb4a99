"""What a process of the embedded world really holds: `python -m tests.evaluation.held_memory FEW MANY`.

Prints the resident set in MiB before the backbone is loaded, then its peak with FEW and with MANY in a call.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import torch

import actors.env_runner  # noqa: F401  what an env runner imports
from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig


def main() -> None:
    torch.set_num_threads(1)
    load_backbone(BackboneConfig())  # imports what only loading imports
    held = [psutil.Process().memory_info().rss / 2**20]
    engine = Engine(load_backbone(BackboneConfig()), EngineConfig(solver="dpmpp", num_steps=7))
    for count in map(int, sys.argv[1:]):
        episodes = engine.begin([EpisodeRequest("a red circle", seed) for seed in range(count)])
        engine.denoise(episodes)
        engine.preview(episodes)
        held.append(_peak_mib())
    print(*held)  # noqa: T201


def _peak_mib() -> float:
    """Of this program alone: `ru_maxrss` begins with what the process that started it held."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
