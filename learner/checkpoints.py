"""Full checkpoints of a run: RLlib's (weights, optimiser, counters) plus what RLlib does not know.

Always true here: a checkpoint's folder appears by a rename, complete or not at all; the newest `keep` of
them stay; a damaged one is a UserError that names it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.errors import UserError

_STATE = "run.json"
_RANDOM = "random.pt"


@dataclass(frozen=True)
class RunState:
    """What a resumed run needs besides RLlib's state.

    c_nfe: the current price of one NFE; sigma, scales: the reward's calibration; seconds: spent in iterations
    so far; price: what moves c_nfe (`learner.budget`), None where it is fixed.
    """

    iteration: int
    c_nfe: float
    sigma: float
    scales: dict[str, float]
    seconds: float
    price: dict[str, Any] | None = None


def save(algorithm: Any, folder: Path, state: RunState, *, keep: int) -> Path:
    """Write a checkpoint below `folder` and drop the oldest beyond `keep`."""
    final = folder / f"iteration-{state.iteration:06d}"
    aside = folder / f".{final.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    algorithm.save_to_path(str((aside / "rllib").absolute()))
    torch.save(_random_state(), aside / _RANDOM)
    (aside / _STATE).write_text(json.dumps(asdict(state), indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(run_dir: Path) -> Path:
    """The newest checkpoint of a run. UserError if there is none."""
    found = _complete(run_dir / "checkpoints")
    if not found:
        raise UserError(f"resume={run_dir}: no checkpoint below it; give the folder of an earlier run")
    return found[-1]


def read_state(checkpoint: Path) -> RunState:
    """The part that is ours. UserError if it cannot be read."""
    try:
        return RunState(**json.loads((checkpoint / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"resume={checkpoint}: damaged ({_STATE} cannot be read); delete it") from error


def restore(algorithm: Any, checkpoint: Path) -> None:
    """Put RLlib's state and every random generator back. UserError if the checkpoint is damaged."""
    try:
        algorithm.restore_from_path(str((checkpoint / "rllib").absolute()))
        saved = torch.load(checkpoint / _RANDOM, weights_only=True)
        _set_random_state(saved)
    except Exception as error:  # RLlib raises whatever its pickles raise
        raise UserError(f"resume={checkpoint}: damaged ({type(error).__name__}); delete it") from error


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("iteration-*") if (path / _STATE).exists())


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def _set_random_state(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    name, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
