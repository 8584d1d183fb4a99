"""The references that all runs of a folder share, as Parquet.

Always true here: a reference is found by everything that it depends on (`ReferenceKind`, prompt, seed), so a
changed option, model or scorer never meets an old one. A file is written aside and renamed, and never changed
afterwards; so nobody reads half of one, and processes that write at the same time lose nothing to each other.
Of an image that is there twice the file that was begun earlier counts; the two differ by rounding at most.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pyarrow.parquet

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.files import written_aside
from actors.references import Reference, ReferenceKind, plain_request

FOLDER = "references"
"""Beside the runs that share it."""
_SCHEMA = pyarrow.schema(
    [
        ("prompt", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("nfe", pyarrow.int32()),
        ("scores", pyarrow.string()),
    ]
)
_KIND = b"addiffusion_references"
"""Under this name every file says of which kind its rows are, for people who wonder what a folder holds."""


class ReferenceStore:
    """The references of one kind, in the folder `root`/KEY: files that only ever get more."""

    def __init__(self, root: Path, kind: ReferenceKind) -> None:
        self.folder = root / kind.key
        self._kind = kind
        self._seen: dict[Path, list[Reference]] = {}

    def read(self) -> dict[EpisodeRequest, Reference]:
        """All references by plain request; of a score that is there twice the older one counts.

        Raises UserError for a file that cannot be read.
        """
        known: dict[EpisodeRequest, Reference] = {}
        for path in self._files():
            if path not in self._seen:
                self._seen[path] = self._read_file(path)
            for found in self._seen[path]:
                older = known.get(found.request)
                scores = found.scores if older is None else found.scores | older.scores
                known[found.request] = Reference(found.request, scores, found.nfe)
        return known

    def add(self, references: Sequence[Reference]) -> None:
        """Keep what is new of these, in one file; nothing is written if nothing is."""
        known = self.read()
        new = [each for each in references if not _covers(known, each.request, each.scores)]
        if not new:
            return
        table = pyarrow.table(
            {
                "prompt": [each.request.prompt for each in new],
                "seed": [each.request.seed for each in new],
                "nfe": [each.nfe for each in new],
                "scores": [json.dumps(each.scores, sort_keys=True, allow_nan=False) for each in new],
            },
            schema=_SCHEMA.with_metadata({_KIND: json.dumps(asdict(self._kind), sort_keys=True)}),
        )
        final = self.folder / f"{len(self._files()):06d}-{uuid.uuid4().hex[:12]}.parquet"
        with written_aside(final) as aside:
            pyarrow.parquet.write_table(table, aside, compression="zstd")

    def complete(
        self,
        requests: Sequence[EpisodeRequest],
        outputs: Collection[str],
        compute: Callable[[list[EpisodeRequest]], Iterable[Sequence[Reference]]],
    ) -> list[Reference]:
        """The references of all requests, with these scalar scores; `compute` runs those that are missing.

        What it gives is kept piece by piece, so that an interruption costs the last piece only.
        """
        known = self.read()
        missing = [request for request in requests if not _covers(known, request, outputs)]
        if missing:
            for piece in compute(missing):
                self.add(piece)
            known = self.read()
        assert all(_covers(known, request, outputs) for request in requests), "a reference is still missing"
        return [known[plain_request(request)] for request in requests]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def _read_file(self, path: Path) -> list[Reference]:
        try:
            rows = pyarrow.parquet.read_table(path, columns=_SCHEMA.names).to_pylist()
            return [
                Reference(EpisodeRequest(row["prompt"], row["seed"]), json.loads(row["scores"]), row["nfe"])
                for row in rows
            ]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"references={path}: damaged, delete it to compute it again") from error


def _covers(
    known: dict[EpisodeRequest, Reference], request: EpisodeRequest, outputs: Collection[str]
) -> bool:
    found = known.get(plain_request(request))
    return found is not None and set(outputs) <= set(found.scores)
