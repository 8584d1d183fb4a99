"""Features of images on disk, so that a measurement that was stopped goes on and nothing is computed twice.

Always true here: a feature is stored under the content of its image (and its prompt, where that matters) and
the identity of its source; so another image, prompt or model never finds it. Files are written aside, named
after their content, and never changed: they may be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actors.errors import UserError
from actors.files import written_aside

Features = dict[str, NDArray[np.float32]]
_KEY = "key"


def feature_key(digest: str, prompt: str) -> str:
    """What a row is found by; prompt is "" for a source that looks at none."""
    return hashlib.blake2b(f"{digest}\n{prompt}".encode(), digest_size=16).hexdigest()


class FeatureStore:
    """The features of one source in one folder."""

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        self._folder = folder / f"{name}@{identity}"

    def known(self) -> set[str]:
        """The keys of all rows."""
        return {key for path in self._parts() for key in _read(path, [_KEY]).column(_KEY).to_pylist()}

    def add(self, keys: Sequence[str], features: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep rows. Raises AssertionError for one that is missing or not finite."""
        columns = {_KEY: pa.array(keys, pa.string())}
        for name, values in features.items():
            assert len(values) == len(keys), f"{len(values)} rows of {name!r} for {len(keys)} images"
            assert np.isfinite(values).all(), f"a non-finite {name!r} is never stored"
            columns[name] = _column(np.asarray(values, dtype=np.float32))
        digest = hashlib.blake2b("\n".join(keys).encode(), digest_size=16).hexdigest()
        with written_aside(self._folder / f"{digest}.parquet") as aside:
            pq.write_table(pa.table(columns), aside)

    def load(self, keys: Sequence[str], names: Iterable[str]) -> Features:
        """Rows of these keys, in their order; KeyError if one is not there."""
        wanted, names = set(keys), list(names)
        place: dict[str, int] = {}
        pieces: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        stored = 0
        for path in self._parts():
            table = _read(path, [_KEY, *names])
            rows = [row for row, key in enumerate(table.column(_KEY).to_pylist()) if key in wanted]
            if not rows:
                continue
            found = table.take(rows)
            for name in names:
                pieces[name].append(_array(found.column(name)))
            for row, key in enumerate(found.column(_KEY).to_pylist(), stored):
                place.setdefault(key, row)
            stored += len(rows)
            wanted -= place.keys()
        order = [place[key] for key in keys]
        return {name: np.concatenate(parts)[order] for name, parts in pieces.items()}

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable features ({reason}); delete it to go on") from error


def _column(values: NDArray[np.float32]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _array(column: pa.ChunkedArray) -> NDArray[np.float32]:
    whole = column.combine_chunks()
    if pa.types.is_fixed_size_list(whole.type):
        flat = whole.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, dtype=np.float32).reshape(len(whole), whole.type.list_size)
    return np.asarray(whole.to_numpy(zero_copy_only=False), dtype=np.float32)
