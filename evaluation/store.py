"""Images that were made, kept beside the runs: PNG, what it was, what it scored and cost, in Parquet.

    FOLDER/CONDITIONS/METHOD-KEY/part-DIGEST.parquet

Always true here: a part is one job's images, whole or absent, under a name that its prompts and seeds give
it, so that a job that is done twice leaves one part. An image is reused only for the same weights
(backbone, scorers, metric) under the same conditions (device, number type, images that share a call or a
machine), the same method and options, prompt and seed. Whoever is killed loses the parts
that were not written, and what is made next is what is missing: no image is lost, and none is there twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from actors.contracts import EpisodeRequest, EpisodeResult, Images
from actors.errors import UserError
from actors.files import written_aside
from evaluation.methods import Method
from evaluation.rows import SCHEMA, ImageRow, read_rows, to_records

STORE_SCHEMA = pa.schema(
    [
        *SCHEMA,
        ("decisions", pa.string()),  # JSON: action, step, timestep, NFE, attempt and score of each
        ("png", pa.binary()),
    ]
)
Key = tuple[str, int]
"""Prompt and seed."""


@dataclass(frozen=True, slots=True)
class ImageStore:
    """The images of one bench's methods; plain data that travels to other processes.

    identity: changes with whatever an image's numbers or seconds depend on, besides method and request.
    """

    folder: Path
    identity: str

    def __post_init__(self) -> None:
        # A worker on Ray has another working directory.
        object.__setattr__(self, "folder", self.folder.absolute())

    def known(self, method: Method, requests: Sequence[EpisodeRequest]) -> list[ImageRow]:
        """The rows of these requests that are here already, labelled as the requests are."""
        stored = self._stored(method)
        return [
            replace(row, tier=request.tier, category=request.category)
            for request in requests
            if (row := stored.get((request.prompt, request.seed))) is not None
        ]

    def add(
        self,
        method: Method,
        rows: Sequence[ImageRow],
        episodes: Sequence[EpisodeResult],
        images_BHWC: Images,
    ) -> None:
        """Keep a job's images as one part."""
        records = [
            {**record, "decisions": _decisions(episode), "png": png_bytes(image)}
            for record, episode, image in zip(to_records(rows), episodes, images_BHWC, strict=True)
        ]
        keys = sorted(row.key for row in rows)
        digest = hashlib.sha256(repr(keys).encode()).hexdigest()[:16]
        table = pa.Table.from_pylist(records, schema=STORE_SCHEMA)
        with written_aside(self.path(method) / f"part-{digest}.parquet") as aside:
            pq.write_table(table, aside)

    def images(self, method: Method, requests: Sequence[EpisodeRequest]) -> Iterator[tuple[Key, Images]]:
        """Key and H x W x 3 of each of these requests that is here; one part is in memory at a time."""
        wanted = {(request.prompt, request.seed) for request in requests}
        for part in self._parts(method):
            for record in pq.read_table(part, columns=["prompt", "seed", "png"]).to_pylist():
                key = (record["prompt"], record["seed"])
                if key in wanted:
                    wanted.discard(key)
                    yield key, read_png(record["png"])

    def path(self, method: Method) -> Path:
        """The folder of one method's parts."""
        name = re.sub(r"[^\w@.-]", "_", method.name)
        return self.folder / self.identity / f"{name}-{method.key}"

    def _parts(self, method: Method) -> list[Path]:
        return sorted(self.path(method).glob("part-*.parquet"))

    def _stored(self, method: Method) -> dict[Key, ImageRow]:
        """Of parts that overlap (evaluations of other sizes cut other jobs) the first has its say."""
        stored: dict[Key, ImageRow] = {}
        for part in self._parts(method):
            for row in read_rows(part):
                if row.method != method.name:
                    raise UserError(f"{part}: holds images of {row.method!r}; delete it to go on")
                stored.setdefault(row.key, row)
        return stored


def png_bytes(image_HWC: Images) -> bytes:
    """A PNG, lossless."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(png: bytes) -> NDArray[np.uint8]:
    """The picture again, H x W x 3."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def _decisions(episode: EpisodeResult) -> str:
    return json.dumps(
        [
            [one.action, one.step_index, one.timestep, one.nfe, one.attempt, one.image_reward]
            for one in episode.decisions
        ]
    )
