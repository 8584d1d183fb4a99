"""Files of the recipe: written aside and renamed, so that an interrupted stage leaves only whole ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike


def save_npz(path: Path, **arrays: ArrayLike) -> None:
    """Write arrays to an uncompressed .npz file."""
    aside = path.with_suffix(".part.npz")
    np.savez(aside, **arrays)  # type: ignore[arg-type]
    os.replace(aside, path)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resumable training state (tensors and plain numbers; read back with `weights_only`)."""
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    os.replace(aside, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The training state at `path`, or None if there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def log_line(path: Path, **values: float | int | str) -> None:
    """Append one JSON line to a stage's log and show it."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    with path.open("a") as file:
        file.write(json.dumps(rounded) + "\n")
    print(path.stem, *(f"{k}={v}" for k, v in rounded.items()), flush=True)  # noqa: T201
