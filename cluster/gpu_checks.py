"""GPUs: those of this machine, those that a run asks for, and published cards by name.

Always true here: nothing is allocated on a GPU; what the driver says is asked of `nvidia-smi`, which needs
neither torch nor a free byte.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass

from actors.errors import UserError
from cluster.check import Check
from learner.config import RunConfig
from learner.placement import Demand, Node, lack

GIB = 2**30
MIB = 2**20
#: MiB that nvidia-smi reports as a card's memory.
CARDS = {
    "t4": 15_360,
    "v100-16": 16_384,
    "l4": 23_034,
    "a10g": 23_028,
    "rtx-3090": 24_576,
    "rtx-4090": 24_564,
    "v100-32": 32_768,
    "a100-40": 40_960,
    "l40s": 46_068,
    "a100-80": 81_920,
    "h100-80": 81_559,
    "h200": 143_771,
}
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi lists it."""

    name: str
    memory_mib: int
    driver: str


def card_bytes(name: str) -> int:
    """The memory of a named card. Raises UserError for a name that is not known."""
    if name not in CARDS:
        raise UserError(f"--gpu {name}: give one of {', '.join(CARDS)}")
    return CARDS[name] * MIB


def local_gpus() -> list[Gpu]:
    """This machine's GPUs; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if answer.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    return [Gpu(name, int(memory), driver) for name, memory, driver in rows if memory.isdigit()]


def gpus(run: RunConfig, wanted: list[Demand]) -> Check:
    """As many GPUs as a local Ray would need, which torch can use."""
    found = local_gpus()
    told = describe(found)
    cuda, resources = run.backbone.device.startswith("cuda"), run.resources
    if cuda and resources.num_env_runners and not resources.gpus_per_env_runner:
        hint = "Ray hides GPUs from an env runner that reserves none: resources=one_gpu, or another with GPUs"
        return Check("GPUs", False, f"{told}; backbone.device={run.backbone.device}", hint)
    if resources.address is not None:
        return Check("GPUs", True, f"{told}; the run's are the cluster's")
    missing = lack(wanted, [Node(math.inf, [1.0] * len(found), frozenset())])
    if missing is not None:
        return Check("GPUs", False, told, missing)
    return Check("GPUs", *_usable(found, cuda, told))


def describe(found: list[Gpu]) -> str:
    """How many of which, how much memory, and the driver."""
    kinds = Counter(found)
    named = [
        f"{count} x {gpu.name}, {gpu.memory_mib / 1024:.1f} GiB, driver {gpu.driver}"
        for gpu, count in kinds.items()
    ]
    return "; ".join(named) or "none here"


def _usable(found: list[Gpu], cuda: bool, told: str) -> tuple[bool, str, str]:
    import torch

    if not cuda or torch.cuda.is_available():
        return True, told, ""
    if not found:
        return False, told, "backbone.device=cpu, or a machine with a GPU and NVIDIA's driver"
    built = torch.version.cuda
    why = f"the driver is too old for torch's CUDA {built}" if built else "torch is a build without CUDA"
    return False, f"{told}, of which torch sees none", f"{why}; pip install -c constraints.txt torch"
