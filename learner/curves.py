"""The few numbers of an iteration that are drawn as curves, and the file that TensorBoard draws them from.

Always true here: a point's step is its iteration, also after a resume; what could not be written to a full
disk is written later, and nothing raises.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

#: Name and unit; docs/metrics.md says what each means. RLlib knows hundreds, nobody reads them.
METRICS = {
    "return": "reward",
    "quality": "scaled score",
    "quality_over_reference": "scaled score",
    "nfe": "denoiser calls",
    "nfe_std": "denoiser calls",
    "cost": "denoiser calls",
    "c_nfe": "reward per denoiser call",
    "entropy": "nats",
    "explained_variance": "share",
    "gradient_norm": "norm",
    "policy_lag": "updates",
    "denoiser_utilisation": "share",
    "episodes_per_s": "1/s",
    "held_out/quality": "raw score",
    "held_out/nfe": "denoiser calls",
    "held_out/utility": "raw score",
    "held_out/share": "share",
}
TENSORBOARD = "tensorboard"
PICTURES_TAG = "held_out/pictures"
"""TensorBoard's name for the pictures."""


def points(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that a row of progress.jsonl has."""
    return {name: float(row[name]) for name in METRICS if name in row}


class TensorBoardCurves:
    """Event files in `folder`; points from `next_iteration` on that an interrupted run left are hidden.

    failed: told once whenever writing begins to fail.
    """

    def __init__(self, folder: Path, next_iteration: int, failed: Callable[[OSError], None]) -> None:
        self._folder = folder
        self._failed = failed
        self._failing = False
        self._writer: EventsWriter | None = None
        begin = {"step": next_iteration}
        self._waiting = [
            Event(**begin, file_version="brain.Event:2"),
            Event(**begin, session_log=SessionLog(status=SessionLog.START)),
        ]

    def log(self, row: Mapping[str, Any]) -> None:
        """Add the points of a row."""
        values = [summary.scalar(name, value).value[0] for name, value in points(row).items()]
        self._add(Event(step=row["iteration"], wall_time=row["time"], summary=Summary(value=values)))

    def picture(self, path: Path, row: Mapping[str, Any]) -> None:
        """Add a PNG."""
        png = path.read_bytes()
        width, height = Image.open(io.BytesIO(png)).size
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
        value = Summary.Value(tag=PICTURES_TAG, image=image)
        self._add(Event(step=row["iteration"], wall_time=row["time"], summary=Summary(value=[value])))

    def _add(self, event: Any) -> None:
        self._waiting.append(event)
        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / f"iteration-{event.step:06d}"))
            for waiting in self._waiting:
                self._writer.write_event(waiting)
            self._writer.flush()
        except OSError as error:
            self.close()
            if not self._failing:
                self._failed(error)
            self._failing = True
        else:
            self._waiting.clear()
            self._failing = False

    def close(self) -> None:
        """Close the present file; the next point would open another one."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer = None
