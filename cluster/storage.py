"""Where a job's results stay: a job's own folder vanishes with it.

Always true here: a command leaves this file with absolute places of results only, or with a warning that says
what is lost, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from actors.errors import UserError
from cluster.parsing import Parsed

TRACKING = "MLFLOW_TRACKING_URI"
RUNS = "runs"
#: Commands that write into the folder of runs that the option runs_dir= names.
_WRITE_RUNS = {("train",), ("tune",), ("offline",), ("baselines", "run"), ("rewards", "calibrate")}
_REGISTER = {("train",), ("tune",), ("offline",)}
#: Parameters that say where a command reads runs or leaves results.
_PLACES = ("runs_dir", "out", "json_file", "folder")
_ABSOLUTE = re.compile(r"/[\w./+@-]*")
_GIVE = "give --storage FOLDER, a folder that all nodes share"


def kept(
    command: Sequence[str],
    parsed: Parsed,
    *,
    storage: PurePosixPath | None,
    runs_dir: str,
    variables: Collection[str],
) -> tuple[list[str], str | None]:
    """The command with all its places on a folder that stays, and a warning where something will not.

    storage: such a folder; runs_dir: where the command would have its runs; variables: names in the job's
    environment. Raises UserError where results would be lost.
    """
    if storage is not None and not _ABSOLUTE.fullmatch(str(storage)):
        raise UserError(f"--storage={storage}: give an absolute path without spaces, the same on all nodes")
    words, warning = list(command), None
    earlier = next((parsed.values[name] for name in ("resume", "long") if parsed.values.get(name)), None)
    if parsed.path in _WRITE_RUNS and earlier is not None:
        if not earlier.startswith("/"):
            if storage is None:
                raise UserError(f"{earlier}: is not there in a job; {_GIVE}, or an absolute path")
            words = replaced(words, earlier, str(storage / RUNS / earlier))
    elif parsed.path in _WRITE_RUNS and not runs_dir.startswith("/"):
        if storage is not None:
            words = appended(words, f"runs_dir={storage / runs_dir}")
        elif is_tracked(parsed, variables):
            warning = (
                f"runs_dir={runs_dir}: checkpoints and report vanish with the job, only what MLflow gets "
                f"stays; to keep them, {_GIVE}"
            )
        else:
            raise UserError(
                f"runs_dir={runs_dir}: results there vanish with the job; {_GIVE} (or --env {TRACKING}, to "
                "keep at least what MLflow gets)"
            )
    for name in _PLACES:
        value = parsed.values.get(name)
        if value is None or Path(value).is_absolute():
            continue
        if name == "runs_dir" and parsed.values.get("tracking_uri") is not None:
            continue  # it would only say where the registry is
        option = parsed.options[name]
        if storage is None:
            raise UserError(
                f"{option or name.upper()}={value}: is not there in a job, or vanishes with it; {_GIVE}"
            )
        stays = str(storage / value)
        if name in parsed.given:
            words = replaced(words, str(value), stays, option)
        else:
            words = appended(words, str(option), stays)
    return words, warning


def is_tracked(parsed: Parsed, variables: Collection[str]) -> bool:
    """Whether a tracking server gets policy and metrics, which then outlive the job."""
    if parsed.path not in _REGISTER:
        return False
    uri = last(parsed.overrides, "registry.tracking_uri")
    return TRACKING in variables if uri is None else "://" in uri and not uri.startswith(("sqlite:", "file:"))


def last(overrides: Sequence[str], option: str) -> str | None:
    """The value that an option has in the end, None where it is not given."""
    found = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == option]
    return found[-1] if found and found[-1] != "null" else None


def appended(command: Sequence[str], *words: str) -> list[str]:
    """The command with words at its end, or where its options end."""
    end = list(command).index("--") if "--" in command else len(command)
    return [*command[:end], *words, *command[end:]]


def replaced(command: Sequence[str], old: str, new: str, option: str | None = None) -> list[str]:
    """The command with a value changed: behind its option, or wherever it stands at last."""
    words = list(command)
    for index in reversed(range(len(words))):
        before = words[index - 1] if index else ""
        if words[index] == old and option in (None, before):
            return [*words[:index], new, *words[index + 1 :]]
        name, _, value = words[index].partition("=")
        if value == old and name.startswith("--") and option in (None, name):
            return [*words[:index], f"{name}={new}", *words[index + 1 :]]
    raise AssertionError(f"{old} is not in {words}")
