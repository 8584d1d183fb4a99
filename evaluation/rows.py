"""One row an image: what it was, what it scored, what it cost. Parquet files of them, and tables [P, S].

Always true here: a file is written aside and renamed, so it is whole or absent. A table holds every prompt
with every seed, in the order of its requests; a missing or doubled image is an error, never a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.files import written_aside

Floats = NDArray[np.float64]

IMAGES_FILE = Path("evaluation/images.parquet")
"""Where a run keeps the rows of its evaluation."""

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("prompt", pa.string()),
        ("tier", pa.string()),
        ("category", pa.string()),
        ("seed", pa.int64()),
        ("quality", pa.float64()),
        ("image_reward", pa.float64()),
        ("clip_score", pa.float64()),
        ("nfe", pa.int64()),
        ("network_evals", pa.int64()),
        ("looks", pa.int64()),
        ("attempts", pa.int64()),
        ("cost", pa.float64()),
        ("seconds", pa.float64()),
        ("actions", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One finished image of one method.

    quality is what hypotheses are decided on, image_reward and clip_score are learned scores of the same
    full-size image as it is, never a forecast (clip_score None: the scorers have no CLIP), looks the images
    that were scored on the way to it, cost NFE plus looks at their price, seconds the share of this image in
    the wall time of its batch.
    """

    method: str
    prompt: str
    tier: str | None
    seed: int
    quality: float
    image_reward: float
    nfe: int
    network_evals: int
    looks: int
    attempts: int
    cost: float
    seconds: float
    actions: tuple[str, ...]
    clip_score: float | None = None
    category: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Which of a method's images it is."""
        return self.prompt, self.seed


@dataclass(frozen=True, slots=True)
class MethodTable:
    """A method's images as arrays with one row a prompt and one column a seed."""

    name: str
    quality_PS: Floats
    nfe_PS: Floats
    network_evals_PS: Floats
    looks_PS: Floats
    cost_PS: Floats
    seconds_PS: Floats

    def by_prompt(self, column: str) -> Floats:
        """A column averaged over seeds, [P]: the unit of every statistic."""
        values_PS: Floats = getattr(self, f"{column}_PS")
        means_P: Floats = values_PS.mean(1)
        return means_P

    def mean(self, column: str) -> float:
        """A column averaged over everything."""
        return float(self.by_prompt(column).mean())


def to_records(rows: Iterable[ImageRow]) -> list[dict[str, Any]]:
    """Rows as SCHEMA has them."""
    names = [field.name for field in fields(ImageRow)]
    return [{name: getattr(row, name) for name in names} for row in rows]


def from_records(records: Iterable[Mapping[str, Any]]) -> list[ImageRow]:
    """Rows from what `to_records` made, whatever else the records hold."""
    names = [field.name for field in fields(ImageRow)]
    return [
        ImageRow(**{**{name: record[name] for name in names}, "actions": tuple(record["actions"])})
        for record in records
    ]


def write_rows(path: Path, rows: Iterable[ImageRow]) -> None:
    """Write rows as one Parquet file, whole or not at all."""
    with written_aside(path) as aside:
        pq.write_table(pa.Table.from_pylist(to_records(rows), schema=SCHEMA), aside)


def read_rows(path: Path) -> list[ImageRow]:
    """Rows of a file that `write_rows` or a store wrote; UserError if it is missing or no such table.

    Columns that an earlier version did not write are None.
    """
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run `addiffusion evaluate` again") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a readable table of evaluated images ({reason}); delete it to go on"
        ) from error
    return from_records(table.to_pylist())


def tabulate(name: str, rows: Iterable[ImageRow], requests: Sequence[EpisodeRequest]) -> MethodTable:
    """Arrange a method's rows as prompts by seeds, in the order of requests (a prompt's seeds together)."""
    by_image: dict[tuple[str, int], ImageRow] = {}
    for row in rows:
        key = (row.prompt, row.seed)
        assert key not in by_image, f"{name} has two images of {row.prompt!r}, seed {row.seed}"
        by_image[key] = row
    ordered = [by_image[(request.prompt, request.seed)] for request in requests]
    assert len(ordered) == len(by_image), f"{name} has images nobody asked for"
    num_prompts = len({request.prompt for request in requests})

    def column(field: str) -> Floats:
        return np.array([getattr(row, field) for row in ordered], dtype=np.float64).reshape(num_prompts, -1)

    return MethodTable(
        name,
        column("quality"),
        column("nfe"),
        column("network_evals"),
        column("looks"),
        column("cost"),
        column("seconds"),
    )
