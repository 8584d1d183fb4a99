"""Registers the policy of a run, from nothing but the run's folder.

Always true here: what a run's own end registers and what is registered days later are the same, the policy in
`policy/`, in the MLflow run that has the curves; a collapsed policy gets no alias; a registry that does not
answer costs a run nothing but the version.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.errors import UserError
from actors.files import written_aside
from actors.policy import load_policy
from learner import curves, registry
from learner.events import EventLog
from learner.json_lines import read_rows
from learner.mlflow_run import MlflowRun, read_config
from learner.tracking import first_line

RESULT = "result.json"
COMMAND = "addiffusion registry register"
_PAUSE_S = 5.0


@dataclass(frozen=True)
class Result:
    """How a run ended. seconds: of its last part; model_version: None if it is not registered (yet)."""

    ended: str
    iterations: int
    seconds: float
    model_version: str | None = None

    def write(self, run_dir: Path) -> None:
        """Write result.json."""
        with written_aside(run_dir / RESULT) as aside:
            aside.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def read_result(run_dir: Path) -> Result:
    """result.json of a run. UserError if it has not ended."""
    try:
        return Result(**json.loads((run_dir / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"run {run_dir}: has not ended; addiffusion train --resume {run_dir.name}") from error


def known_version(run_dir: Path, iterations: int) -> str | None:
    """The version of a run that had ended after so many iterations before; None if it is not registered."""
    try:
        earlier = read_result(run_dir)
    except UserError:
        return None
    return earlier.model_version if earlier.iterations == iterations else None


def register_run(run_dir: Path) -> str:
    """Send what MLflow lacks of a run's curves, then register its policy; gives the version.

    Raises UserError for a run that has not ended, else whatever MLflow raises.
    """
    result, config = read_result(run_dir), read_config(run_dir)
    _, metadata = load_policy(run_dir / "policy")
    rows = read_rows(run_dir / "progress.jsonl")
    tracked = MlflowRun(run_dir)
    tracked.send(rows)
    at: int = metadata["iteration"]
    points = next((curves.points(row) for row in rows if row["iteration"] == at), {})
    own = {f"policy/{name}": value for name, value in points.items() if name.startswith("held_out/")}
    version = registry.register(
        run_dir / "policy",
        name=registry.model_name(config["backbone"]["name"]),
        uri=tracked.uri,
        run_id=tracked.open(),
        metrics={**own, "policy/iteration": at, "seconds_total": result.seconds},
        step=at,
        config=config,
        tags={"backbone": metadata["backbone"], "run_dir": str(run_dir), "ended": result.ended},
        alias=None if result.ended == "collapsed" else config["registry"]["alias"],
    )
    Result(result.ended, result.iterations, result.seconds, version).write(run_dir)
    return version


def register_patiently(run_dir: Path, patience_s: float, events: EventLog) -> str | None:
    """`register_run`, tried for so long; None, and an event that says how to do it later, if it fails."""
    try:
        return patiently(lambda: register_run(run_dir), patience_s)
    except Exception as error:  # whatever a server, a proxy, a database or a disk may raise
        events.record(
            "registry",
            f"the policy is trained but not registered ({first_line(error)}); it is in "
            f"{run_dir / 'policy'}; register it with: {COMMAND} {run_dir.name}",
        )
        return None


def patiently(attempt: Callable[[], str], patience_s: float) -> str:
    """What an attempt gives, made again and again for so long; raises what the last one raised."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return attempt()
        except Exception:  # whatever a server, a proxy, a database or a disk may raise
            if time.monotonic() + _PAUSE_S >= deadline:
                raise
        time.sleep(_PAUSE_S)
