"""Stored images: one method's pictures by prompt and seed, in Parquet tables, files in a folder, or a run.

Always true here: a set's records are light (no pixels), in the order they are stored; pixels are read when
they are asked for, a Parquet row group at a time. Two images of one prompt and seed, an image that cannot be
read and a column that is missing are the user's mistake, and are named.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from actors.contracts import Images
from actors.errors import UserError
from evaluation.rows import IMAGES_FILE, read_rows
from evaluation.run_files import read_summary
from evaluation.summary import SUMMARY_FILE

IMAGE_COLUMN = "png"
"""The column of Parquet tables that holds a picture's file: as the evaluation stores them, PNG; JPEG too."""
COSTS = ("nfe", "network_evals", "seconds")
SUFFIXES = (".png", ".jpg", ".jpeg")
LIST_FILE = "metadata.jsonl"
"""In a folder: a JSON object a line with file_name, and prompt and seed where they are known."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known of one image without its pixels, and where those are.

    prompt is "" for pictures without one, as real images of a reference set are; costs are None where nobody
    measured them. row_group and row are None for a file of its own.
    """

    prompt: str
    seed: int
    path: Path
    row_group: int | None = None
    row: int | None = None
    tier: str | None = None
    category: str | None = None
    nfe: float | None = None
    network_evals: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ImageSet:
    """The images of one method."""

    name: str
    records: tuple[ImageRecord, ...] = field(repr=False)

    def __post_init__(self) -> None:
        found: set[tuple[str, int]] = set()
        for record in self.records:
            key = (record.prompt, record.seed)
            if record.prompt and key in found:
                raise UserError(
                    f"{record.path}: two images of {self.name!r} for {record.prompt!r}, seed {record.seed}"
                )
            found.add(key)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def has_prompts(self) -> bool:
        """Whether every image has the prompt it was made from."""
        return all(record.prompt for record in self.records)


def read_sets(path: Path) -> list[ImageSet]:
    """The sets of a run, in one Parquet file or in a folder of images or Parquet files, by the method's name.

    Parquet tables need the columns prompt, seed and png, and may have method, tier, category and the costs;
    where parts overlap, an image that is there twice counts once. A folder of picture files is one set,
    called as the folder. An evaluated run's folder stands for the images that were compared, which lie beside
    the runs with those of other evaluations. UserError for anything else.
    """
    if is_evaluated(path):
        return _compared_sets(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give Parquet tables or a folder of images")
    tables = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return _parquet_sets(tables, path) if tables else [_folder_set(path)]


def is_evaluated(path: Path) -> bool:
    """Whether this is the folder of a run that was evaluated."""
    return (path / SUMMARY_FILE).is_file()


def read_encoded(record: ImageRecord) -> bytes:
    """The picture's file."""
    if record.row_group is None or record.row is None:
        return record.path.read_bytes()
    stat = record.path.stat()
    encoded = _row_group(record.path, record.row_group, stat.st_mtime_ns)[record.row].as_py()
    if not isinstance(encoded, bytes) or not encoded:
        raise UserError(f"{record.path}: no image for {record.prompt!r}, seed {record.seed}")
    return encoded


def decode(encoded: bytes, record: ImageRecord) -> Images:
    """uint8 [H, W, 3]; UserError if it is no picture."""
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        named = f" ({record.prompt!r}, seed {record.seed})" if record.prompt else ""
        raise UserError(f"{record.path}{named}: not a readable picture: {error}") from error


def encode(image: Images) -> bytes:
    """A uint8 image [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def digest(encoded: bytes) -> str:
    """Thirty-two hex digits of a picture's file: what its features are stored under."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def by_seed_number(records: Sequence[ImageRecord]) -> list[list[int]]:
    """Indices of the first image of every prompt, of the second, and so on, by rising seeds.

    One list of all where prompts have no names or unequally many images.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_prompt.setdefault(record.prompt, []).append(index)
    if "" in by_prompt or len({len(rows) for rows in by_prompt.values()}) != 1:
        return [list(range(len(records)))]
    ranked = [sorted(rows, key=lambda index: records[index].seed) for rows in by_prompt.values()]
    return [list(rows) for rows in zip(*ranked, strict=True)]


def _compared_sets(run_dir: Path) -> list[ImageSet]:
    folders = read_summary(run_dir)["config"].get("stored")
    if folders is None:
        raise UserError(f"{run_dir}: does not say where its images are; run `addiffusion evaluate` again")
    wanted: dict[str, list[tuple[str, int]]] = {}
    for row in read_rows(run_dir / IMAGES_FILE):
        wanted.setdefault(row.method, []).append(row.key)
    sets = []
    for name, keys in wanted.items():
        folder = run_dir.absolute().parent / folders[name]
        there = read_sets(folder) if folder.exists() else []
        stored = {(record.prompt, record.seed): record for each in there for record in each.records}
        if absent := set(keys) - set(stored):
            prompt, seed = min(absent)
            raise UserError(
                f"{folder}: {len(absent)} images of {name!r} are gone, one of {prompt!r}, seed {seed};"
                " run `addiffusion evaluate` again"
            )
        sets.append(ImageSet(name, tuple(stored[key] for key in keys)))
    return sets


def _parquet_sets(paths: Sequence[Path], given: Path) -> list[ImageSet]:
    found: dict[str, dict[tuple[str, int], ImageRecord]] = {}
    for path in paths:
        for method, record in _parquet_records(path):
            name, key = method or given.stem, (record.prompt, record.seed)
            known = found.setdefault(name, {}).setdefault(key, record)
            if known is not record and read_encoded(known) != read_encoded(record):
                raise UserError(
                    f"{path}: another image of {name!r} for {record.prompt!r}, seed {record.seed}, than in"
                    f" {known.path}"
                )
    if not found:
        raise UserError(f"{given}: no images in it")
    return [ImageSet(name, tuple(records.values())) for name, records in found.items()]


def _parquet_records(path: Path) -> Iterator[tuple[str | None, ImageRecord]]:
    known = {each.name for each in fields(ImageRecord)} - {"path", "row_group", "row"}
    try:
        with pq.ParquetFile(path) as file:
            columns = set(file.schema_arrow.names)
            for needed in ("prompt", "seed", IMAGE_COLUMN):
                if needed not in columns:
                    raise UserError(f"{path}: no column {needed!r}; needed: prompt, seed, {IMAGE_COLUMN}")
            wanted = [name for name in (*known, "method") if name in columns]
            for group in range(file.num_row_groups):
                for row, values in enumerate(file.read_row_group(group, columns=wanted).to_pylist()):
                    method = values.pop("method", None)
                    yield method, ImageRecord(path=path, row_group=group, row=row, **values)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable table of images ({str(error).splitlines()[0]})") from error


@lru_cache(maxsize=2)
def _row_group(path: Path, group: int, _changed: int) -> pa.ChunkedArray:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[IMAGE_COLUMN]).column(0)


def _folder_set(folder: Path) -> ImageSet:
    listed = _listed(folder / LIST_FILE)
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise UserError(f"{folder}: no images in it; accepted: {', '.join(SUFFIXES)}, or Parquet tables")
    if listed is None:
        return ImageSet(folder.name, tuple(ImageRecord("", 0, path) for path in pictures))
    records = []
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        if name not in listed:
            raise UserError(f"{folder / LIST_FILE}: nothing about {name}")
        values = listed[name]
        records.append(
            ImageRecord(
                str(values.get("prompt", "")),
                int(values.get("seed", 0)),
                path,
                tier=values.get("tier"),
                category=values.get("category"),
                **{cost: values.get(cost) for cost in COSTS},
            )
        )
    return ImageSet(folder.name, tuple(records))


def _listed(path: Path) -> Mapping[str, Mapping[str, Any]] | None:
    if not path.is_file():
        return None
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
            found[values["file_name"]] = values
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number}: give a JSON object with file_name") from error
    return found
