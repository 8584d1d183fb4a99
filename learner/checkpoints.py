"""Full checkpoints of a run: RLlib's (weights, optimiser, counters) plus what RLlib does not know.

Always true here: a checkpoint's folder appears by a rename, complete or not at all; the newest `keep` of
them stay; a damaged one is a UserError that names it.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.errors import UserError
from actors.files import written_aside

_STATE = "run.json"
_RANDOM = "random.pt"
POLICY = "policy"
_ASIDE = re.compile(r"\..+\.(\d+|part)")


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


def save(algorithm: Any, folder: Path, state: RunState, policy_dir: Path, *, keep: int) -> Path:
    """Write a checkpoint below `folder` and drop the oldest beyond `keep`; the policy's folder is part of it.

    Raises OSError where the disk does not take it; nothing is left of it then.
    """
    final = folder / f"iteration-{state.iteration:06d}"
    aside = folder / f".{final.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        algorithm.save_to_path(str((aside / "rllib").absolute()))
        random_state = io.BytesIO()
        torch.save(_random_state(), random_state)  # to a file, it would hide what ails the disk
        (aside / _RANDOM).write_bytes(random_state.getvalue())
        if policy_dir.exists():
            shutil.copytree(policy_dir, aside / POLICY)
        (aside / _STATE).write_text(json.dumps(asdict(state), indent=1))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def clear_unfinished(run_dir: Path) -> None:
    """Delete what a killed process was writing aside."""
    for path in sorted(run_dir.rglob(".*")):
        if not _ASIDE.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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


def restore(algorithm: Any, checkpoint: Path, policy_dir: Path) -> None:
    """Put RLlib's state, every random generator and the policy's folder back. UserError if it is damaged."""
    try:
        algorithm.restore_from_path(str((checkpoint / "rllib").absolute()))
        saved = torch.load(checkpoint / _RANDOM, weights_only=True)
        _set_random_state(saved)
        for file in sorted((checkpoint / POLICY).glob("*")):
            with written_aside(policy_dir / file.name) as aside:
                shutil.copyfile(file, aside)
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
