"""Baselines that were run before, kept beside the runs so that no image is made twice.

Always true here: a row is reused only for the same weights (backbone, scorers, metric), the same baseline,
the same engine options, prompt and seed. A file is replaced as a whole; two evaluations that write at the
same time may lose rows to each other, which costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.contracts import EpisodeRequest
from evaluation.baselines import config_hash
from evaluation.methods import BaselineMethod
from evaluation.rows import ImageRow, read_rows, write_rows


@dataclass(frozen=True, slots=True)
class BaselineCache:
    """The rows of one bench's baselines, a Parquet file for each baseline and its options."""

    folder: Path
    bench_identity: str

    def known(self, method: BaselineMethod, requests: Sequence[EpisodeRequest]) -> list[ImageRow]:
        """The rows of these requests that are here already."""
        stored = self._stored(method)
        return [stored[key] for request in requests if (key := (request.prompt, request.seed)) in stored]

    def add(self, method: BaselineMethod, rows: Iterable[ImageRow]) -> None:
        """Keep new rows; of an image that is here already the old row stays."""
        merged = {(row.prompt, row.seed): row for row in rows} | self._stored(method)
        write_rows(self._path(method), merged.values())

    def _stored(self, method: BaselineMethod) -> dict[tuple[str, int], ImageRow]:
        path = self._path(method)
        return {(row.prompt, row.seed): row for row in read_rows(path)} if path.exists() else {}

    def _path(self, method: BaselineMethod) -> Path:
        return self.folder / self.bench_identity / f"{method.name}-{config_hash(method.engine)}.parquet"
