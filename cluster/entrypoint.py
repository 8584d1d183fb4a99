"""The shell line that a job runs, made of one of our commands.

Always true here: a mistake in the command is found before anything is sent; a second try goes on with what
the first one left, where the command can.
"""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from actors.errors import UserError
from cluster.parsing import Parsed, parse
from cluster.runs import CONFIG
from cluster.storage import RUNS, TRACKING, appended, kept, last
from tune_configs.loading import STUDIES, compose, compose_offline

#: Commands that use Ray, and the override that says where it is; others have an option --address.
_ADDRESS = {
    ("train",): "resources.address",
    ("tune",): "resources.address",
    ("baselines", "run"): "resources.address",
    ("evaluate",): "evaluation.address",
}
#: Commands that make a run.
_MAKE_RUNS = {("train",), ("tune",), ("offline",)}
#: Commands whose overrides are options of a training, besides those that are a sweep's.
_COMPOSED = {("train",), ("tune",), ("baselines", "run"), ("rewards", "calibrate")}
_SWEEP = (*(f"{group}=" for group in STUDIES), "sweep.")
_FOLLOWERS = ("submit", "jobs")


@dataclass(frozen=True)
class Entrypoint:
    """A command as a job.

    line, again: what the shell runs at the first try and at the next ones; named: paths in the working folder
    that the command names; world: whether it needs the embedded world's models; results: where its run will
    be, None if it makes none; warning: what will be lost with the job.
    """

    line: str
    again: str
    named: tuple[str, ...]
    world: bool
    results: str | None
    warning: str | None


def entrypoint(
    arguments: Sequence[str],
    *,
    job: str,
    folder: Path,
    storage: PurePosixPath | None = None,
    variables: Collection[str] = (),
    python: str = "python",
) -> Entrypoint:
    """The job of `addiffusion ARGUMENTS`.

    job: its name, which a run without one gets; folder: what the command's relative paths are relative to;
    storage: a folder of the cluster that outlives jobs; variables: the names in the job's environment.
    Raises UserError, and typer.TyperException for what the command line refuses.
    """
    parsed = parse(arguments)
    if parsed.path[0] in _FOLLOWERS:
        raise UserError(f"{parsed.path[0]}: a job submits no jobs; give a command such as train")
    goes_on = any(parsed.values.get(name) is not None for name in ("resume", "long"))
    composed = _Composed() if goes_on else _compose(parsed)
    runs_dir = composed.runs_dir
    words, warning = kept(arguments, parsed, storage=storage, runs_dir=runs_dir, variables=variables)
    results: str | None = None
    if not goes_on:
        address = _ADDRESS.get(parsed.path)
        if address is not None and last(parsed.overrides, address) is None:
            words = appended(words, f"{address}=auto")
        if "address" in parsed.values and parsed.values["address"] is None:
            words = appended(words, "--address", "auto")
    if parsed.path in _MAKE_RUNS and not goes_on:
        if TRACKING in variables and last(parsed.overrides, "registry.tracking_uri") is None:
            words = appended(words, f"registry.tracking_uri=${{oc.env:{TRACKING}}}")
        name = composed.name
        if name is None:
            name, words = job, appended(words, f"name={job}")
        results = str((storage or PurePosixPath()) / runs_dir / name)
    run = f"{shlex.quote(python)} -m cluster.cli"
    line = again = f"{run} {shlex.join(words)}"
    begun = _begun(parsed)
    if results is not None and begun is not None and results.startswith("/"):
        resume = shlex.join([parsed.path[0], "--resume", results])
        again = f"if test -f {shlex.quote(f'{results}/{begun}')}; then {run} {resume}; else {line}; fi"
    named = tuple(_named(arguments, folder))
    return Entrypoint(line, again, named, composed.world, results, warning)


def _begun(parsed: Parsed) -> str | None:
    """The file by which a run is known to have begun; None where it cannot go on."""
    if parsed.path == ("tune",):
        from tune_configs.sweep import FILE  # brings all of Ray Tune

        return FILE
    return CONFIG if parsed.path == ("train",) else None


class _Composed(NamedTuple):
    """What is known of a command's options; name: None where the user gives none."""

    runs_dir: str = RUNS
    name: str | None = None
    world: bool = True


def _compose(parsed: Parsed) -> _Composed:
    """Compose what can be composed here."""
    given = last(parsed.overrides, "name")
    if parsed.path == ("offline",):
        offline = compose_offline(parsed.overrides)
        return _Composed(offline.runs_dir, None if given is None else offline.name, world=False)
    if parsed.path not in _COMPOSED:
        return _Composed()
    run, evaluation = compose([text for text in parsed.overrides if not text.startswith(_SWEEP)])
    given = None if given is None else run.name
    world = run.backbone.name == "shapes" or run.backbone.scorers is None or evaluation.scorers is None
    return _Composed(run.runs_dir, given, world)


def _named(arguments: Sequence[str], folder: Path) -> list[str]:
    """The paths in `folder` that a command names. UserError for one outside that a job would not find."""
    named = []
    for text in arguments:
        option, _, value = text.removeprefix("@").rpartition("=")
        if not value or value.startswith(("-", "/")) or option in ("runs_dir", "--runs-dir", "name"):
            continue
        inside = os.path.normpath(value)
        if not _is_there(folder / inside):
            continue
        if inside.startswith(".."):
            raise UserError(
                f"{text}: is outside of {folder} and does not travel; choose another --working-dir, or give "
                "an absolute path on a folder that all nodes share"
            )
        named.append(inside)
    return named


def _is_there(path: Path) -> bool:
    """Whether it is the path of something; a prompt may be longer than a file's name can be."""
    try:
        return path.exists()
    except OSError:
        return False
