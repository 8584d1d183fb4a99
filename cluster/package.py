"""What a job takes along: the files of a working folder and the project itself, in one archive.

Always true here: hidden files (.git, .env, .venv, .aws) never travel; runs and weights do where the command
names them; equal files give an equal archive, which a cluster that has it is not sent again; an archive that
Ray would refuse is refused before it is sent, with what makes it large.
"""

from __future__ import annotations

import fnmatch
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from actors.errors import UserError

MIB = 2**20
LIMIT = 100 * MIB
"""Bytes that a cluster's job server takes in one request."""
PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("actors", "cluster", "evaluation", "learner", "rewards_service", "shapes", "tune_configs")
WORLD = "shapes/models"
"""The embedded world's own models, 13 MB."""
NEVER = ("__pycache__", "*.pyc", "*.egg-info", "build", "dist", "venv", "node_modules", "mlruns")
UNLESS_NAMED = ("runs", "*.safetensors", "*.ckpt", "*.pt", "*.pth", "*.bin", "*.onnx", "*.gguf")
_NAMED_LARGEST = 5
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """An archive that is ready to be sent: where it is, its files, its size in bytes."""

    path: Path
    files: int
    size: int


def collect(
    folder: Path, *, named: Sequence[str] = (), excludes: Sequence[str] = (), world: bool = True
) -> dict[str, Path]:
    """The files that travel, by their path in the job's working folder.

    folder: the working folder; where it is not the project itself, the project's packages are added.
    named: paths in `folder` that the command names; excludes: patterns of names, or of paths in `folder`;
    world: whether the embedded world's models are needed. Raises UserError.
    """
    if not folder.is_dir():
        raise UserError(f"--working-dir={folder}: no such folder")
    wanted = [PurePosixPath(name) for name in (*named, *([WORLD] if world else ()))]
    files = dict(_walk(folder, wanted, excludes))
    for name in named:
        if not any(_is_in(file, name) for file in files) and _holds_files(folder / name):
            raise UserError(
                f"{name}: the command names it, but it does not travel: hidden files, links to folders, "
                f"{', '.join(NEVER)} and what --exclude says never do; move it, or put it on a folder that "
                "all nodes share and give its absolute path"
            )
    if (folder / "cluster" / "cli.py").is_file():
        return files
    for package in PACKAGES:
        if (folder / package).exists():
            raise UserError(
                f"--working-dir={folder}: '{package}' there would hide the project's own; give another folder"
            )
        files |= {
            f"{package}/{name}": path for name, path in _walk(PROJECT / package, wanted, (), inside=package)
        }
    return files


def pack(files: Mapping[str, Path], target: Path, *, limit: int = LIMIT) -> Package:
    """Write the archive.

    Raises UserError for a file that cannot be sent, and where the archive grows past `limit` bytes one that
    names the largest files.
    """
    _check_readable(files)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                while (chunk := source.read(MIB)) and sink.write(chunk):
                    if archive.fp is not None and archive.fp.tell() > limit:
                        raise _too_large(files, limit)
    size = target.stat().st_size
    if size > limit:
        raise _too_large(files, limit)
    return Package(target, len(files), size)


def _check_readable(files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        reason = None if _is_utf8(name) else "its name is not UTF-8"
        try:
            path.open("rb").close()
        except OSError as error:
            reason = error.strerror or type(error).__name__
        if reason is not None:
            raise UserError(f"{name!a}: cannot travel ({reason}); leave it out with --exclude PATTERN")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_large(files: Mapping[str, Path], limit: int) -> UserError:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:_NAMED_LARGEST]
    listed = ", ".join(f"{name} ({sizes[name] / MIB:.1f} MiB)" for name in largest)
    return UserError(
        f"the job's files are more than {limit / MIB:g} MiB (unpacked {sum(sizes.values()) / MIB:.0f} MiB); "
        f"the largest: {listed}; leave files out with --exclude PATTERN, or put them on a folder that all "
        "nodes share and give its absolute path"
    )


def _walk(
    folder: Path, wanted: Sequence[PurePosixPath], excludes: Sequence[str], inside: str = ""
) -> Iterator[tuple[str, Path]]:
    """Files that travel, with their path below `folder`; patterns see it with `inside` before."""
    for current, folders, names in os.walk(folder):
        here = PurePosixPath(Path(current).relative_to(folder).as_posix())
        folders[:] = [name for name in sorted(folders) if _travels(inside / here / name, wanted, excludes)]
        for name in sorted(names):
            path = Path(current) / name
            if path.is_file() and _travels(inside / here / name, wanted, excludes):
                yield str(here / name), path


def _is_in(file: str, name: str) -> bool:
    """Whether a file is the named one, or in the named folder."""
    return PurePosixPath(name) in (PurePosixPath(file), *PurePosixPath(file).parents)


def _holds_files(path: Path) -> bool:
    return path.is_file() or any(one.is_file() for one in path.rglob("*"))


def _travels(path: PurePosixPath, wanted: Sequence[PurePosixPath], excludes: Sequence[str]) -> bool:
    if path.name.startswith(".") or _matches(path, (*NEVER, *excludes)):
        return False
    if any(path == one or one in path.parents or path in one.parents for one in wanted):
        return True
    return not any(_matches(one, UNLESS_NAMED) for one in (path, *path.parents))


def _matches(path: PurePosixPath, patterns: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatch(path.name, pattern) or fnmatch.fnmatch(str(path), pattern.rstrip("/"))
        for pattern in patterns
    )
