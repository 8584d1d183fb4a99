"""A sweep in MLflow: one parent run, and a child run for each trial that ended.

Always true here: written by the sweep's process alone, from the ledger, so that trials never wait for MLflow;
a server that does not answer costs a line and nothing else; what is missing is sent when the sweep goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlflow.tracking import MlflowClient

from actors.errors import redacted
from actors.files import written_aside
from learner import registry
from learner.json_lines import read_rows
from learner.mlflow_run import MlflowRun
from tune_configs.ledger import Outcome
from tune_configs.sweep_config import METRICS
from tune_configs.sweep_files import Sweep

FILE = "tracking.json"
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class _Sent:
    """What is there: the parent's id, and each trial's, with what had become of it."""

    uri: str
    parent: str | None = None
    children: Mapping[str, str] = field(default_factory=dict)
    statuses: Mapping[str, str] = field(default_factory=dict)


class SweepTracking:
    """Sends a sweep's outcomes; raises whatever MLflow raises."""

    def __init__(self, folder: Path, sweep: Sweep, uri: str, experiment: str) -> None:
        registry.quiet()
        self._folder, self._sweep, self._uri, self._experiment = folder, sweep, uri, experiment
        self._sent = _read(folder / FILE, redacted(uri))

    def send(self, outcomes: Mapping[str, Outcome], files: Sequence[Path] = ()) -> None:
        """Send what is not there yet of the trials that ended, and the tables."""
        client = MlflowClient(tracking_uri=self._uri)
        parent = self._parent()
        for trial, outcome in outcomes.items():
            if self._sent.statuses.get(trial) != outcome.status:
                run_id = self._child(client, parent, outcome)
                children = {**self._sent.children, trial: run_id}
                statuses = {**self._sent.statuses, trial: outcome.status}
                self._keep(_Sent(self._sent.uri, parent, children, statuses))
        ended = [outcome.status for outcome in outcomes.values()]
        for status in ("finished", "stopped", "failed"):
            client.log_metric(parent, f"trials_{status}", ended.count(status))
        for file in files:
            client.log_artifact(parent, str(file))
        client.set_terminated(parent)  # what a resumed sweep sends later is taken all the same

    def _parent(self) -> str:
        if self._sent.parent is None:
            config = {"sweep": self._sweep.title, "description": self._sweep.config.description}
            parent = registry.new_run(self._uri, self._experiment, self._folder.name, config)
            self._keep(_Sent(self._sent.uri, parent))
            return parent
        return self._sent.parent

    def _child(self, client: MlflowClient, parent: str, outcome: Outcome) -> str:
        """Of a trial whose folder is on this machine the run that registering its policy would use.

        A trial that failed before keeps its run.
        """
        spec, run_dir = outcome.spec, self._folder / outcome.spec.id
        if (run_dir / "config.yaml").is_file():
            tracked = MlflowRun(run_dir)
            tracked.send(read_rows(run_dir / "progress.jsonl"))
            run_id = tracked.open()
        elif (known := self._sent.children.get(spec.id)) is not None:
            run_id = known
        else:
            told = {"seed": spec.seed, **spec.values}
            run_id = registry.new_run(self._uri, self._experiment, spec.id, told)
        tags = {_PARENT: parent, "variants": ", ".join(spec.labels), "status": outcome.status}
        tags["error"] = outcome.error or ""
        for key, text in tags.items():
            client.set_tag(run_id, key, text)
        for metric in METRICS:
            if (value := outcome.metric(metric)) is not None:
                client.log_metric(run_id, f"judged/{metric}", value, step=outcome.iterations)
        client.set_terminated(run_id, "FAILED" if outcome.status == "failed" else "FINISHED")
        return run_id

    def _keep(self, sent: _Sent) -> None:
        with written_aside(self._folder / FILE) as aside:
            aside.write_text(json.dumps(asdict(sent)), encoding="utf-8")
        self._sent = sent


def _read(path: Path, uri: str) -> _Sent:
    try:
        sent = _Sent(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Sent(uri)
    return sent if sent.uri == uri else _Sent(uri)
