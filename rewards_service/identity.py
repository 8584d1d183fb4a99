"""Which reward models scored something: a name made of their files' content.

Always true: equal files give equal names, wherever they lie; any other file gives another name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def scorers_identity(folder: Path) -> str:
    """NAME@DIGEST of a folder of reward models."""
    return f"{folder.name}@{folder_digest(folder)[:12]}"


def folder_digest(folder: Path) -> str:
    """A digest of all files of a folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
