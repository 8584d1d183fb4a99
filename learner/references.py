"""The references table of a run, and what is calibrated on it before the first update.

Always true here: a reference is computed once and found again by its key; the table is written aside and
renamed. Calibration sees reference trajectories only, so it is the same for every policy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.observations import Observer
from actors.references import Reference
from rewards_service.contracts import METRICS

SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("prompt", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("nfe", pyarrow.int32()),
        ("scores", pyarrow.string()),
    ],
    metadata={"addiffusion_references": "1"},
)
#: Below this spread an input is constant in the calibration batch and is left as it is.
_CONSTANT = 1e-3
_NOTHING = 1e-6


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of every input of the critic, the policy's first."""

    mean_D: NDArray[np.float32]
    std_D: NDArray[np.float32]


def write_table(path: Path, rows: dict[str, Reference]) -> None:
    """Write all references of a run; `rows` by key."""
    table = pyarrow.table(
        {
            "key": list(rows),
            "prompt": [row.request.prompt for row in rows.values()],
            "seed": [row.request.seed for row in rows.values()],
            "nfe": [row.nfe for row in rows.values()],
            "scores": [json.dumps(row.scores, sort_keys=True) for row in rows.values()],
        },
        schema=SCHEMA,
    )
    aside = path.with_suffix(".part")
    pyarrow.parquet.write_table(table, aside, compression="zstd")
    os.replace(aside, path)


def read_table(path: Path) -> dict[str, Reference]:
    """References by key; none if there is no table. UserError for a damaged one."""
    if not path.exists():
        return {}
    try:
        table = pyarrow.parquet.read_table(path, columns=SCHEMA.names).to_pylist()
        return {
            row["key"]: Reference(
                EpisodeRequest(row["prompt"], row["seed"]), json.loads(row["scores"]), row["nfe"]
            )
            for row in table
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"references={path}: damaged, delete it to compute it again") from error


def missing(
    requests: Sequence[EpisodeRequest], keys: Sequence[str], known: Mapping[str, Reference]
) -> list[EpisodeRequest]:
    """The requests that have no reference yet."""
    return [request for request, key in zip(requests, keys, strict=True) if key not in known]


def normalisation(references: Sequence[Reference], observer: Observer) -> Normalisation:
    """Statistics of the observations seen on the way, completed by the observer.

    An input that never changed is left as it is.
    """
    seen = [reference.observations_TD for reference in references if reference.observations_TD is not None]
    observations_ND = np.concatenate(seen)
    mean_D, std_D = observations_ND.mean(axis=0), observations_ND.std(axis=0)
    constant = std_D < _CONSTANT
    mean_D[constant], std_D[constant] = 0.0, 1.0
    return Normalisation(*observer.complete_statistics(mean_D.astype(np.float32), std_D.astype(np.float32)))


def hardest(qualities: Sequence[float]) -> tuple[int, ...]:
    """Indices of the quarter, at least one, with the lowest quality: where giving up could pay."""
    order = np.argsort(np.asarray(qualities), kind="stable")
    return tuple(int(index) for index in order[: max(len(order) // 4, 1)])


def score_scales(references: Sequence[Reference]) -> dict[str, float]:
    """How much of each metric that was scored counts as 1: what the seeds of one prompt make it differ by."""
    scales = {}
    for metric, output in METRICS.items():
        if output not in references[0].scores:
            continue
        values = np.array([reference.scores[output] for reference in references])
        scales[metric] = spread([reference.request.prompt for reference in references], values)
    return scales


def spread(prompts: Sequence[str], values_N: NDArray[np.float64]) -> float:
    """Standard deviation within a prompt, pooled; over all prompts where each has one seed only.

    1 where nothing differs, as a scale must not be 0.
    """
    assert np.isfinite(values_N).all(), "a reference's score is not finite"
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values_N, strict=True):
        groups.setdefault(prompt, []).append(float(value))
    freedom = len(values_N) - len(groups)
    if freedom > 0:
        squares = sum(float(np.square(np.array(group) - np.mean(group)).sum()) for group in groups.values())
        deviation = float(np.sqrt(squares / freedom))
    else:
        deviation = float(values_N.std())
    return deviation if deviation > _NOTHING else 1.0
