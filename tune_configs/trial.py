"""One trial of a sweep, as Ray Tune runs it: our own training run, a held-out evaluation at a time.

Always true here: a process runs trials one after another and keeps the backbone and its memos from one to
the next; an error that a trial raises becomes its result, so that the process and what it keeps live on,
unless a GPU may be broken for this process; a trial whose process died goes on from its own last checkpoint;
what a trial reports was measured on held-out prompts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from ray import tune

from actors.errors import UserError
from actors.kept import Kept
from learner import checkpoints, session
from learner.config import RunConfig
from learner.guards import TrainingFailure
from learner.registration import Result
from learner.run import Run
from learner.train import training_requests, write_config
from tune_configs.admission import FREE, GPU, MEMORY, free_memory
from tune_configs.footprint import footprint, runners_footprint
from tune_configs.objective import better, judged_requests, measured
from tune_configs.plan import Place, TrialSpec, config_key, trial_config
from tune_configs.sweep_config import METRICS, SweepConfig

OpenWorld = Callable[[RunConfig], AbstractContextManager[session.World]]
OBJECTIVE = "objective"
"""Of a report: the sweep's metric, turned so that more is better; what schedulers and searchers see."""
SPEC = "spec"
"""In a trial's configuration for Tune: its `TrialSpec` as JSON (Tune would keep an object elsewhere); of a
population also the values that change."""
ERROR_FILE = "error.txt"


class PolicyTrial(tune.Trainable):
    """Trains one policy and measures it. `setup` gets what all trials of the sweep share."""

    _taken_over: Path | None = None

    def setup(self, config: dict[str, Any], sweep: SweepConfig, place: Place, open_world: OpenWorld) -> None:
        """Take the first trial; nothing is loaded before its first step."""
        self._sweep, self._place, self._open_world = sweep, place, open_world
        self._kept: Kept | None = None
        self._kept_for: object = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial, in the same process."""
        self._close()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train until the next held-out evaluation, or to the end; gives the trial's report."""
        try:
            report = self._advance()
        except Exception as error:  # whatever a trial raises is its outcome, not the sweep's
            self._keep_traceback()
            if spoils_process(error):
                raise
            self._close()
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            report = {"status": "failed", "error": message, "done": True}
        return {"iteration": self._trained, "seconds": self._seconds, **report}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For pbt: the run's newest checkpoint, which is of the evaluation that was reported last."""
        shutil.copytree(checkpoints.newest(self._run_dir), Path(checkpoint_dir) / "run")

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """For pbt: go on from another trial's checkpoint, or from its own."""
        assert isinstance(checkpoint, str)
        self._close()
        kept = self._run_dir / ".taken_over"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(Path(checkpoint) / "run", kept)  # Tune's folder is gone when this returns
        self._taken_over = kept

    def cleanup(self) -> None:
        """End the training under way."""
        self._close()

    # -- one trial -------------------------------------------------------------------------------------

    def _take(self, config: Mapping[str, Any]) -> None:
        self._spec = spec_of(config)
        self._values = {name: config[name] for name in self._sweep.space if name in config}
        self._run_dir = self._place.folder / self._spec.id
        self._stack = ExitStack()
        self._run: Run | None = None
        self._rows: Generator[dict[str, Any], None, str] | None = None
        self._taken_over = None
        self._trained, self._seconds = 0, 0.0
        self._watched: dict[str, float] = {}

    def _advance(self) -> dict[str, Any]:
        if self._run is None:
            self._begin()
        run, rows = self._run, self._rows
        assert run is not None
        assert rows is not None
        try:
            while True:
                try:
                    row = next(rows)
                except StopIteration as end:
                    return self._finish(run, str(end.value))
                if "held_out/utility" in row:
                    self._watched = {name: row[f"held_out/{name}"] for name in METRICS}
                    if run.iteration < run.config.ppo.iterations:
                        return self._report(run)
        finally:
            self._trained, self._seconds = run.iteration, run.seconds

    def _begin(self) -> None:
        """Open the world and the run: a new one, or that of a process that died, or another trial's."""
        with contextlib.suppress(OSError):  # another machine need not have it; Tune would be elsewhere anyway
            os.chdir(self._place.working_dir)
        config = trial_config(self._spec, self._place, self._values)
        config.validate()
        requests = training_requests(config)
        taken_over = self._taken_over
        if taken_over is None and not self._is_same(config):
            shutil.rmtree(self._run_dir, ignore_errors=True)
        write_config(self._run_dir, config)
        checkpoints.clear_unfinished(self._run_dir)
        torch.set_num_threads(config.resources.torch_threads)
        world = self._stack.enter_context(self._open_world(config))
        if config.resources.num_env_runners == 0:
            kept = self._keep(config, world)
            world = replace(world, make_backbone=kept.backbone, kept=kept)
        self._run = Run(config, self._run_dir, requests, world, lambda row: None)
        self._stack.callback(self._run.close)
        checkpoint = taken_over or _newest(self._run_dir)
        if checkpoint is None:
            self._run.calibrate()
        else:
            state = checkpoints.read_state(checkpoint)
            if taken_over is not None and config.reward.target_nfe is None:
                state = replace(state, c_nfe=config.reward.c_nfe)
            self._run.resume(checkpoint, state)
            if taken_over is not None:
                shutil.rmtree(taken_over)
                self._taken_over = None
        self._rows = self._run.iterations()

    def _finish(self, run: Run, ended: str) -> dict[str, Any]:
        judge = self._sweep.judge
        found = measured(run.best_actions(judged_requests(run.config, judge)), judge.seeds)
        memory = self._memory(run)
        Result(ended, run.iteration, run.seconds).write(self._run_dir)
        self._close()
        return {
            OBJECTIVE: better(self._sweep.metric) * found.mean(self._sweep.metric),
            "status": "finished",
            "ended": ended,
            "watched": self._watched,
            "measured": asdict(found),
            "done": True,
            **memory,
        }

    def _report(self, run: Run) -> dict[str, Any]:
        metric = self._sweep.metric
        return {
            OBJECTIVE: better(metric) * self._watched[metric],
            "watched": self._watched,
            **self._memory(run),
        }

    def _keep(self, config: RunConfig, world: session.World) -> Kept:
        """What this process has kept, if it is of the same backbone, judged by the same reward models.

        A backbone with a step cache remembers its last episode, and is loaded anew.
        """
        wanted = (config.backbone, world.scorers, config.resources.memo_mib)
        if self._kept is None or self._kept_for != wanted or config.backbone.cache is not None:
            self._kept, self._kept_for = Kept(world.make_backbone, config.resources.memo_mib), wanted
        return self._kept

    def _memory(self, run: Run) -> dict[str, float]:
        """What the trial's processes hold at most, and how much is free beside them."""
        kept = self._kept
        held = [footprint(() if kept is None else (kept.calls, kept.scores))]
        if run.config.resources.num_env_runners:
            held += run.algorithm.env_runner_group.foreach_env_runner(
                runners_footprint, local_env_runner=False
            )
        to_come = sum(each.to_come for each in held)
        return {
            MEMORY: sum(each.resident for each in held) + to_come,
            FREE: free_memory() - to_come,
            GPU: sum(each.gpu for each in held),
        }

    def _is_same(self, config: RunConfig) -> bool:
        """Whether the trial's folder holds this very training; pbt's change under way, and begin anew."""
        if self._values or not (file := self._run_dir / "config.yaml").is_file():
            return False
        return config_key(yaml.safe_load(file.read_text(encoding="utf-8"))) == self._spec.key

    def _keep_traceback(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        (self._run_dir / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")

    def _close(self) -> None:
        if self._rows is not None:
            self._rows.close()
        self._run = self._rows = None
        self._stack.close()


def spec_of(config: Mapping[str, Any]) -> TrialSpec:
    """The trial that Tune's configuration means."""
    return TrialSpec.of(json.loads(config[SPEC]))


def _newest(run_dir: Path) -> Path | None:
    try:
        return checkpoints.newest(run_dir)
    except UserError:
        return None


def spoils_process(error: Exception) -> bool:
    """Whether a new process is needed: after an error of CUDA's, every call of the process may fail.

    torch raises these as RuntimeError or a kind of it; what Python raises itself and ours say what they are.
    """
    ours = (UserError, TrainingFailure, NotImplementedError, RecursionError)
    return torch.cuda.is_initialized() and isinstance(error, RuntimeError) and not isinstance(error, ours)
