"""One process at a time works on a run, or on a sweep.

Always true here: who holds a folder's lock has it until it ends, however it ends; the file that stays behind
means nothing.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.errors import UserError

FILE = "run.lock"


class RunIsBusyError(UserError):
    """Another process works on it: what is in its folder is not ours to tidy up."""


@contextmanager
def alone(run_dir: Path, kind: str = "run") -> Iterator[None]:
    """Hold the lock of a run's folder, or of another kind's.

    RunIsBusyError if another process has it, UserError where the disk refuses.

    It counts on all machines where the file system has locks for them; on one that has none nobody is kept
    out.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / FILE).open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"runs_dir={run_dir.parent}: cannot write there ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunIsBusyError(
                f"{kind} {run_dir}: another process is working on it; wait until it has ended"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
