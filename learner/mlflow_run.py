"""The MLflow run of a training run: which one it is, and what of curves and pictures it holds already.

Always true here: a training run has one MLflow run, however often it is resumed; a point is sent once; what
is still to be sent follows from the run's folder, so that any process can send it, at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from actors.errors import HIDDEN, UserError, redacted
from actors.files import written_aside
from learner import curves, pictures, registry
from learner.config import RegistryConfig

FILE = "tracking.json"
#: MLflow takes at most 1000 metrics in one call.
_ROWS = 1000 // len(curves.METRICS)


@dataclass(frozen=True)
class _Sent:
    """run_id: None before there is a run; iteration: curves are there up to it; pictures: names of files."""

    uri: str
    run_id: str | None = None
    iteration: int = 0
    pictures: tuple[str, ...] = ()


class MlflowRun:
    """The MLflow run of the training run in `run_dir`; not to be used by two threads at once.

    Raises whatever MLflow, a server or a disk may raise, and can be asked again afterwards.
    """

    def __init__(self, run_dir: Path) -> None:
        registry.impatient()
        for name in ("mlflow", "alembic"):  # their news are for their own users
            logging.getLogger(name).setLevel(logging.WARNING)
        self._run_dir = run_dir
        self._config = read_config(run_dir)
        uri = RegistryConfig(tracking_uri=self._config["registry"]["tracking_uri"]).tracking_uri
        if uri is not None and f"://{HIDDEN}@" in uri:
            raise UserError(
                f"registry.tracking_uri={uri}: user and password are not stored; set MLFLOW_TRACKING_URI to "
                "the whole address"
            )
        self.uri: str = uri or registry.tracking_uri(run_dir.parent)
        self._sent = _read(run_dir / FILE, redacted(self.uri))

    def unsent(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of these rows of progress.jsonl whose points are not there yet."""
        return [row for row in rows if row["iteration"] > self._sent.iteration and curves.points(row)]

    def open(self) -> str:
        """Its id; the run is made where there is none, with the options worth comparing."""
        if self._sent.run_id is not None:
            return self._sent.run_id
        config = self._config
        run_id = registry.new_run(self.uri, config["registry"]["experiment"], config["name"], config)
        self._keep(replace(self._sent, run_id=run_id))
        return run_id

    def send(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Send the points of rows that are not there yet, and the pictures of the run's folder."""
        run_id, client = self.open(), MlflowClient(tracking_uri=self.uri)
        left = self.unsent(rows)
        for start in range(0, len(left), _ROWS):
            batch = left[start : start + _ROWS]
            metrics = [
                Metric(name, value, int(row["time"] * 1000), row["iteration"])
                for row in batch
                for name, value in curves.points(row).items()
            ]
            client.log_batch(run_id, metrics=metrics)
            self._keep(replace(self._sent, iteration=batch[-1]["iteration"]))
        for path in sorted((self._run_dir / pictures.FOLDER).glob("[!.]*.png")):
            if path.name not in self._sent.pictures:
                client.log_artifact(run_id, str(path), pictures.FOLDER)
                self._keep(replace(self._sent, pictures=(*self._sent.pictures, path.name)))

    def _keep(self, sent: _Sent) -> None:
        with written_aside(self._run_dir / FILE) as aside:
            aside.write_text(json.dumps(asdict(sent)), encoding="utf-8")
        self._sent = sent


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.yaml of a run, as plain data. UserError if it cannot be read."""
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"run {run_dir}: its config.yaml cannot be read; give the folder of a run") from error
    assert isinstance(config, dict)
    return config


def _read(path: Path, uri: str) -> _Sent:
    """What was sent to this server; nothing, if the run had another one before."""
    try:
        sent = _Sent(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Sent(uri)
    return replace(sent, pictures=tuple(sent.pictures)) if sent.uri == uri else _Sent(uri)
