"""What a run shows of its iterations: progress.jsonl, TensorBoard, MLflow, example pictures.

Always true here: an iteration stands everywhere under its own number, once, also after a resume; a disk or a
server that fails costs an event and a delay, never the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.held_out import HeldOutEpisode
from learner import curves, pictures
from learner.config import RunConfig
from learner.events import EventLog
from learner.json_lines import JsonLines, read_rows
from learner.progress import progress_file
from learner.tracking import Tracking

#: How long the end of a run waits for curves to be sent; registering has its own patience.
_LAST_SEND_S = 20.0


class RunLog:
    """Where the rows of one run go; `report` is who watches it."""

    def __init__(
        self, config: RunConfig, run_dir: Path, events: EventLog, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._events = events
        self._report = report
        self._file: JsonLines | None = None
        self._tensorboard: curves.TensorBoardCurves | None = None
        self._tracking: Tracking | None = None
        self._failing: set[str] = set()

    def begin(self, next_iteration: int) -> list[dict[str, Any]]:
        """Open everything for the next iteration; gives the rows of those before it."""
        path = self._run_dir / "progress.jsonl"
        self._file = progress_file(path, next_iteration)
        rows = read_rows(path)
        if self._config.progress.tensorboard:
            self._tensorboard = curves.TensorBoardCurves(
                self._run_dir / curves.TENSORBOARD,
                next_iteration,
                lambda error: self._disk("TensorBoard's curves", error),
            )
        if self._config.registry.enabled:
            self._tracking = Tracking(self._run_dir, rows, self._events)
        return rows

    def log(self, row: dict[str, Any], held_out: Sequence[HeldOutEpisode]) -> None:
        """Take one iteration's row and, if there was one, its held-out evaluation."""
        assert self._file is not None, "begin() comes first"
        self._disk("progress.jsonl", self._file.append(row))
        lost = row.get("unwritten_trajectories", 0)
        self._disk("trajectories", OSError(f"{lost} episodes are lost") if lost else None)
        if self._tensorboard is not None:
            self._tensorboard.log(row)
        if any(episode.image_HWC is not None for episode in held_out):
            self._draw(row, held_out)
        if self._tracking is not None:
            self._tracking.log(row)
        self._report(row | {"phase": "training"})

    def wanted_pictures(self, iteration: int, last_evaluated: int, *, last: bool) -> int:
        """How many images the evaluation of an iteration has to bring."""
        every = self._config.progress.pictures_every
        crossed = last or iteration // every > last_evaluated // every
        return self._config.progress.pictures if crossed else 0

    def close(self) -> None:
        """Send and close what is open."""
        if self._tracking is not None:
            self._tracking.close(_LAST_SEND_S)
            self._tracking = None
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _draw(self, row: dict[str, Any], held_out: Sequence[HeldOutEpisode]) -> None:
        path = self._run_dir / pictures.FOLDER / f"iteration-{row['iteration']:06d}.png"
        title = f"{self._config.name}, iteration {row['iteration']}, held-out prompts"
        try:
            pictures.write_grid(path, title, held_out)
        except OSError as error:
            self._disk("pictures", error)
            return
        self._disk("pictures", None)
        if self._tensorboard is not None:
            self._tensorboard.picture(path, row)

    def _disk(self, what: str, error: OSError | None) -> None:
        """An event when writing something begins to fail; training goes on without it."""
        if error is None:
            self._failing.discard(what)
        elif what not in self._failing:
            self._failing.add(what)
            self._events.record(
                "disk", f"{what} cannot be written ({error.strerror or error}); training goes on"
            )
