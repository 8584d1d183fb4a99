"""Answers on disk, one JSON line each, so that no question is paid for twice.

Always true here: a line is written, flushed and synced before its answer counts. A last line that was torn by
the end of the process is cut off when the file is opened again; a damaged line elsewhere is an error. One
process writes a file at a time. Failures are not stored: they are asked again.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from actors.errors import UserError
from evaluation.judge.question import Choice


@dataclass(frozen=True)
class StoredAnswer:
    """An answer and what it cost; key is the question's, tokens are None where the server counted none."""

    key: str
    choice: Choice
    reason: str
    model: str
    input_tokens: int | None
    output_tokens: int | None


class AnswerFile:
    """A JSONL file of answers; may be shared by threads. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"{path}: another process is judging into it; give another --out") from error
        self._answers = self._read()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, key: str) -> StoredAnswer | None:
        """The answer to a question, if it was ever given."""
        return self._answers.get(key)

    def add(self, answer: StoredAnswer) -> None:
        """Keep an answer; of a question that has one already the old one stays."""
        with self._lock:
            if answer.key in self._answers:
                return
            self._file.write(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers[answer.key] = answer

    def _read(self) -> dict[str, StoredAnswer]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        found = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                answer = _parsed(json.loads(line))
            except (ValueError, TypeError) as error:
                self._file.close()
                raise UserError(f"{self._path}, line {number}: not an answer; remove the line") from error
            found[answer.key] = answer
        return found


def _parsed(values: Any) -> StoredAnswer:
    answer = StoredAnswer(**values)
    if answer.choice not in get_args(Choice) or not isinstance(answer.key, str):
        raise ValueError(answer.choice)
    return answer
