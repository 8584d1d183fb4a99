"""Prompts from a dataset of the Hugging Face hub, or from a folder laid out like one.

Always true here: rows are streamed, so that a few prompts of a large dataset are a few rows of its first
file; nothing of a dataset is ever executed (`datasets` runs no loading scripts since 4.0, nor 3 unasked).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from actors.errors import UserError
from actors.prompt_records import Columns, Prompt, Row, find_columns, prompts_of

PREFIX = "hf:"
_FORM = f"{PREFIX}OWNER/NAME, {PREFIX}OWNER/NAME/CONFIGURATION or {PREFIX}./FOLDER"


def read_hub(source: str, split: str, option: str, columns: Columns) -> Generator[Prompt]:
    """The prompts of one split, as they are asked for. Raises UserError.

    source: "hf:OWNER/NAME", with "/CONFIGURATION" where a dataset has several, or "hf:" and a path that
    begins with "." or "/"; option: what the user named it by, for messages.
    """
    name, configuration = _parse(source, option)
    rows = _rows(name, configuration, split, option, columns)

    def numbered() -> Iterator[Row]:
        for number in itertools.count(1):
            try:
                with _quiet():
                    values = next(rows, None)
            except UserError:
                raise
            except Exception as error:  # a zoo: the hub's, the builder's, the file formats'; each says why
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"{option}, split {split!r}: {reason}; accepted: {_FORM}") from error
            if values is None:
                return
            yield Row(f"{option}, row {number}", values)

    yield from prompts_of(numbered(), columns)


def _rows(
    name: str, configuration: str | None, split: str, option: str, columns: Columns
) -> Iterator[dict[str, Any]]:
    import datasets

    dataset = datasets.load_dataset(name, configuration, split=split, streaming=True)
    names = dataset.column_names or list(next(iter(dataset), {}))
    if names:
        # Before a row is read: a column of images would be decoded for nothing.
        yield from dataset.select_columns(find_columns(names, columns, option))


def _parse(source: str, option: str) -> tuple[str, str | None]:
    name = source.removeprefix(PREFIX)
    if name.startswith((".", "/")):
        return name, None
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"{option}; accepted: {_FORM}")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for each of the hub client's retries: in the end there is one error, ours."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
