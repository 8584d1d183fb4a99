"""Files of one JSON object a line that grow while a run goes on.

Always true here: a file ends with a whole line, also after a kill or on a full disk; a line that could not be
written is kept and written with the next one, in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors.files import written_aside


class JsonLines:
    """One file; opening it mends what a kill left, and drops the rows that `keep` does not want."""

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        rows = [row for row in read_rows(path) if keep(row)]
        with written_aside(path) as aside:
            aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> OSError | None:
        """Add a row, at once, as a dashboard may follow the file; gives what kept it from being written."""
        with self._lock:
            self._waiting.append((json.dumps(row) + "\n").encode())
            try:
                self._write(b"".join(self._waiting))
            except OSError as error:
                return error
            self._waiting.clear()
            return None

    def _write(self, lines: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        before = os.fstat(descriptor).st_size
        left = lines
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            if left:
                with contextlib.suppress(OSError):  # a device, as in the tests, has no length
                    os.ftruncate(descriptor, before)
            os.close(descriptor)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file up to the first that is torn or damaged (none if there is no file)."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line under way when a process was killed, or no text at all
            break
    return rows
