"""Which reward models scored something: a name made of their files' content.

Always true: equal files and options give equal names, wherever they lie; any other file gives another name.
What a hub holds under a name is taken to be always the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rewards_service.scorers_config import ScorersConfig


def scorers_identity(named: str | Path | ScorersConfig) -> str:
    """NAME@DIGEST of a folder of reward models, or of options and the local files they name."""
    if not isinstance(named, ScorersConfig):
        return f"{Path(named).name}@{folder_digest(Path(named))[:12]}"
    digest = hashlib.sha256(named.identity.encode())
    for _, source in sorted(named.sources().items()):
        path = Path(source)
        if path.is_dir():
            digest.update(folder_digest(path).encode())
        elif path.is_file():
            digest.update(_file_digest(path))
    return f"models@{digest.hexdigest()[:12]}"


def folder_digest(folder: Path) -> str:
    """A digest of all files of a folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(_file_digest(path))
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    """Read in parts: checkpoints have gigabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
