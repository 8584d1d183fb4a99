"""Prompts from files: text, JSON lines, TSV, Parquet, and the captions of COCO.

Always true here: a file is read as far as its prompts are taken, and no further (COCO's is one JSON value and
has to be read whole); what comes is in the file's order; every mistake is a UserError of one line that names
the file, the line or row, and what is accepted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from actors.errors import UserError
from actors.prompt_records import Columns, Prompt, Row, checked, find_columns, prompts_of

#: A field as spreadsheets and pandas quote it. Quotes elsewhere in a field are part of a plain TSV's text.
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BATCH_ROWS = 1024
_COCO = "captions of COCO, an object with `annotations`"


def read_file(path: Path, option: str, columns: Columns) -> Generator[Prompt]:
    """The prompts of a file, as they are asked for; its suffix says how it is read. Raises UserError.

    option: what the user named the file by ("prompts.source is 'a.txt'"), for messages.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{option}; accepted: {accepted()}")
    if columns != Columns() and reader in (_text, _coco):
        raise UserError(f"{option}, which has no columns to name; accepted: .jsonl, .tsv or .parquet")
    try:
        yield from reader(path, option, columns)
    except UnicodeDecodeError as error:
        raise UserError(f"{option}, which is not text; accepted: UTF-8, one prompt a line") from error
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UserError(f"{option} ({reason}); accepted: {accepted()}") from error


def accepted() -> str:
    """What a source of prompts may be, in the words of a message."""
    *others, last = _READERS
    return f"shapes, hf:OWNER/NAME, or a {', '.join(others)} or {last} file"


def _lines(path: Path, option: str) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, and how to name each; a byte order mark is no part of the first."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{option}, line {number}", line.rstrip("\n")


def _text(path: Path, option: str, columns: Columns) -> Iterator[Prompt]:
    for where, line in _lines(path, option):
        yield checked(where, Prompt(line.strip()))


def _json_lines(path: Path, option: str, columns: Columns) -> Iterator[Prompt]:
    def rows() -> Iterator[Row]:
        for where, line in _lines(path, option):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error}); accepted: objects with `prompt`") from error
            if not isinstance(entry, dict):
                raise UserError(f"{where}: not an object; accepted: objects with `prompt`")
            yield Row(where, entry)

    return prompts_of(rows(), columns)


def _tsv(path: Path, option: str, columns: Columns) -> Iterator[Prompt]:
    lines = _lines(path, option)
    where, header = next(lines, (option, ""))
    names = _fields(header)
    find_columns(names, columns, where)

    def rows() -> Iterator[Row]:
        for where, line in lines:
            fields = _fields(line)
            if len(fields) > len(names):
                raise UserError(f"{where}: {len(fields)} fields; accepted: {len(names)}, as the header has")
            yield Row(where, dict(zip(names, fields + [""] * (len(names) - len(fields)), strict=True)))

    return prompts_of(rows(), columns)


def _fields(line: str) -> list[str]:
    return [
        field[1:-1].replace('""', '"') if _QUOTED.fullmatch(field) else field for field in line.split("\t")
    ]


def _parquet(path: Path, option: str, columns: Columns) -> Iterator[Prompt]:
    import pyarrow
    import pyarrow.parquet

    try:
        # A view of the file instead of a copy, so that a row group of gigabytes need not be in memory.
        with pyarrow.memory_map(str(path)) as source:
            file = pyarrow.parquet.ParquetFile(source, pre_buffer=False)
            needed = find_columns(file.schema_arrow.names, columns, option)

            def rows() -> Iterator[Row]:
                number = 0
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=needed):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"{option}, row {number}", values)

            yield from prompts_of(rows(), columns)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{option}: damaged, or not Parquet; accepted: a complete file") from error


def _coco(path: Path, option: str, columns: Columns) -> Iterator[Prompt]:
    """One caption an image, the one of the lowest annotation id, by image id."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{option}: not JSON ({error}); accepted: {_COCO}") from error
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise UserError(f"{option}: no `annotations`; accepted: {_COCO}, or a .jsonl file")
    first: dict[int, tuple[int, Row]] = {}
    for number, entry in enumerate(annotations, start=1):
        where = f"{option}, annotation {number}"
        image, annotation = _coco_ids(entry, where)
        if image not in first or annotation < first[image][0]:
            first[image] = annotation, Row(where, entry)
    yield from prompts_of((first[image][1] for image in sorted(first)), Columns("caption"))


def _coco_ids(entry: Any, where: str) -> tuple[int, int]:
    image, own = (entry.get("image_id"), entry.get("id")) if isinstance(entry, dict) else (None, None)
    if not isinstance(image, int) or not isinstance(own, int):
        raise UserError(f"{where}: no `image_id` and `id`; accepted: {_COCO}")
    return image, own


_READERS: dict[str, Callable[[Path, str, Columns], Iterator[Prompt]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".json": _coco,
}
