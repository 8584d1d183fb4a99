"""One training run under way: the algorithm, the calibrated reward, the counters, what it saves.

Always true here: the policy's folder holds what would be registered, finite and whole, whatever ends the run;
every iteration starts by telling all env runners its number and the reward, so that a replaced one is up to
date; price, scales and sigma change only here.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID

from actors.contracts import EpisodeRequest
from actors.held_out import HeldOutEpisode
from actors.ledger import Target
from actors.orders import Orders, RunnerSettings
from actors.policy import PolicyNetwork, save_policy
from actors.policy_folder import pack_region_head, read_trained_policy
from actors.references import Reference
from actors.trajectory_origin import Origin
from actors.trajectory_store import discard_from
from learner import calibration, checkpoints, curriculum, references, registration, session
from learner.algorithms import algorithm_config, give_orders, next_round
from learner.budget import Budget
from learner.config import RunConfig
from learner.env_runners import EnvRunners
from learner.events import EventLog
from learner.gradients import check_skipped
from learner.guards import Guards, StopRequest, TrainingFailure, check_finite
from learner.held_out import HeldOutWatch, best_actions, held_out_requests
from learner.ppo import set_schedules
from learner.progress import iteration_row
from learner.reference_runs import ReferenceRuns
from learner.run_log import RunLog
from rewards_service.arithmetic import RewardConfig, quality

Progress = Callable[[dict[str, Any]], None]
CALIBRATION = "calibration.yaml"
"""In a run's folder; `addiffusion train @FILE` takes it."""


class Run:
    """One run under way: the algorithm, the calibrated reward and the counters."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        requests: tuple[EpisodeRequest, ...],
        world: session.World,
        report: Progress,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.policy_dir = run_dir / "policy"
        self.requests = requests
        self.report = report
        self.events = EventLog(run_dir, report)
        self.iteration = 0
        self.seconds = 0.0
        self.reward: RewardConfig = config.reward
        self.budget = Budget(config.reward)
        self._budget_warned = False
        self.described = session.describe(world, config)
        resources = config.resources
        self.settings = RunnerSettings(
            make_backbone=world.make_backbone,
            make_client=world.make_client,
            engine=config.engine,
            observer=self.described.observer,
            requests=requests,
            episodes_per_iteration=config.ppo.episodes_per_iteration,
            slots=resources.slots,
            groups=resources.groups,
            seed=config.seed,
            torch_threads=resources.torch_threads,
            episodes_per_request=config.algorithm.episodes_per_request,
            branch_share=config.algorithm.branch_share,
            memo_mib=resources.memo_mib,
            kept=world.kept if resources.num_env_runners == 0 else None,
            trajectories=str((run_dir / "trajectories").absolute())
            if config.checkpoints.trajectories
            else None,
            trajectory_previews=config.checkpoints.trajectory_previews,
        )
        self.algorithm: Algorithm = algorithm_config(config, self.settings).build_algo()
        self._runners = EnvRunners(
            self.algorithm, resources.num_env_runners, config.guards.runners_patience_s, self.events
        )
        self._references = ReferenceRuns(
            config,
            requests,
            self._runners,
            report,
            backbone=self.described.identity,
            scorers=world.scorers,
            folder=run_dir.parent / references.FOLDER,
        )
        self._guards = Guards(config.guards, config.ppo.episodes_per_iteration, self.events)
        self._watch = HeldOutWatch(config.watch, held_out_requests(config), self._runners, run_dir)
        self._log = RunLog(config, run_dir, self.events, report)
        self.targets: tuple[Target, ...] = ()
        self.hardest_first: tuple[int, ...] = ()

    def close(self) -> None:
        """Stop the env runners, close what is open."""
        self._log.close()
        self.algorithm.stop()

    # -- before the first iteration ------------------------------------------------------------------

    def calibrate(self) -> None:
        """Run the references; fix the input normalisation, the scores' scales and sigma on them."""
        observed = self._references.observed(self.reward)
        statistics = calibration.normalisation(observed, self.described.observer)
        mean_D, std_D = torch.from_numpy(statistics.mean_D), torch.from_numpy(statistics.std_D)
        self.algorithm.learner_group.foreach_learner(
            lambda learner: learner.module[DEFAULT_MODULE_ID].unwrapped().set_normalisation(mean_D, std_D)
        )
        found = self._references.complete(self.reward, observed)
        measured = calibration.calibrate(found, self.reward)
        if self.reward.sigma is None:
            measured_on = f"{len(found)} references of {self.described.identity}"
            measured.write(self.run_dir / CALIBRATION, measured_on)
        self.reward = measured.applied(self.reward)
        self._begin(found)
        self._save_checkpoint()

    def resume(self, checkpoint: Path, state: checkpoints.RunState) -> None:
        """Go on where a checkpoint was written. UserError for one of another backbone, or a damaged one."""
        if (checkpoint / checkpoints.POLICY).exists():
            read_trained_policy(checkpoint / checkpoints.POLICY).check_backbone(self.described.identity)
        checkpoints.restore(self.algorithm, checkpoint, self.policy_dir)
        self.iteration = self.events.iteration = state.iteration
        self.seconds = state.seconds
        self.events.record("resumed", f"the run goes on after iteration {self.iteration}")
        calibrated = calibration.Calibration(state.scales, state.sigma).applied(self.reward)
        self.reward = replace(calibrated, c_nfe=state.c_nfe)
        self.budget.restore(state.price)
        self._begin(self._references.complete(self.reward))

    def _begin(self, found: Sequence[Reference]) -> None:
        """Set the targets, and give all env runners the learner's weights."""
        self.targets = self._references.targets(found, self.reward)
        qualities = [quality(reference.scores, self.reward) for reference in found]
        self.hardest_first = curriculum.by_difficulty(qualities)
        self._runners.sync_weights()
        if self.settings.trajectories is not None:
            folder = Path(self.settings.trajectories)
            discard_from(folder, functools.partial(next_round, self.algorithm, self.iteration))
            self._say_origin(folder)

    def _say_origin(self, folder: Path) -> None:
        """Leave among the trajectories what they come from; without it nothing can learn from them."""
        value = self.algorithm.env_runner.module.value
        mean, std = value.obs_mean.tolist(), value.obs_std.tolist()
        try:
            Origin(self.metadata(), self.config.as_dict(), mean, std).write(folder)
        except OSError as error:
            self.events.record(
                "disk",
                f"what trajectories come from cannot be written ({error.strerror or error}), and nothing can "
                "learn from them without; training goes on, --resume writes it",
            )

    # -- the iterations ------------------------------------------------------------------------------

    def iterate(self, stop: StopRequest | None = None) -> str:
        """Iterations until the last one or until something ends the run; gives what ended it."""
        rows = self.iterations(stop)
        while True:
            try:
                next(rows)
            except StopIteration as end:
                return str(end.value)

    def iterations(self, stop: StopRequest | None = None) -> Generator[dict[str, Any], None, str]:
        """The same one iteration at a time: gives their rows, and in the end what ended it."""
        rows = self._log.begin(self.iteration + 1)
        self._guards.begin(rows)
        self._watch.begin(self.iteration + 1)
        saved_at = self.iteration
        ended = self._over(stop)
        while ended is None:
            row = self._iterate_once()
            ended = self._guards.after_iteration(row, time.monotonic())
            self.reward = self.budget.steer(row, self.reward)
            self._say_budget(row.get("budget", {}).get("warning"))
            held_out: list[HeldOutEpisode] = []
            if row["episodes"] > 0:
                if self._watch.due(self.iteration, last=self._over(None) is not None):
                    held_out = self._evaluate(row)
                    ended = ended or self._guards.after_evaluation(self._watch.evaluations)
                self._save_policy(evaluated=bool(held_out))
            self._log.log(row, held_out)
            if row["episodes"] > 0 and self.iteration % self.config.checkpoints.every == 0:
                self._save_checkpoint()
                saved_at = self.iteration
            ended = ended or self._over(stop)
            yield row
        if saved_at < self.iteration:
            self._save_checkpoint()
        return ended

    def _say_budget(self, warning: str | None) -> None:
        """An event when a wish begins to be out of reach."""
        if warning is not None and not self._budget_warned:
            self.events.record("budget", warning)
        self._budget_warned = warning is not None

    def best_actions(self, requests: Sequence[EpisodeRequest]) -> list[HeldOutEpisode]:
        """The present policy without chance on requests of one's own, scored as the watch scores."""
        return best_actions(self._runners, requests, self.config.watch.score)

    def _over(self, stop: StopRequest | None) -> str | None:
        """Whether the last iteration was the last one, or somebody asks to end."""
        ppo = self.config.ppo
        if self.iteration >= ppo.iterations:
            return "finished"
        if stop is not None and stop.signalled:
            return "interrupted"
        return "time limit" if ppo.time_limit_s is not None and self.seconds >= ppo.time_limit_s else None

    def _evaluate(self, row: dict[str, Any]) -> list[HeldOutEpisode]:
        """Run the held-out watch; its numbers become part of the row."""
        before = self._watch.evaluations[-1].iteration if self._watch.evaluations else 0
        wanted = self._log.wanted_pictures(self.iteration, before, last=self._over(None) is not None)
        episodes = self._watch.evaluate(self.iteration, wanted)
        row |= self._watch.row(self.seconds)
        return episodes

    def _iterate_once(self) -> dict[str, Any]:
        self._runners.wait()
        focus = curriculum.focus(
            self.config.curriculum, self.hardest_first, self.iteration, self.config.ppo.iterations
        )
        orders = Orders(self.iteration, self.reward, self.targets, focus.requests, focus.share)
        give_orders(self.algorithm, orders)
        set_schedules(self.algorithm, self.config.ppo, self.iteration)
        started = time.monotonic()
        results = self.algorithm.train()
        spent = time.monotonic() - started
        self.iteration += 1
        self.events.iteration = self.iteration
        self._runners.say_losses()
        self.seconds += spent
        row = iteration_row(results, iteration=self.iteration, seconds=spent)
        check_skipped(row, self.config.algorithm.max_skipped_updates)
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        check_finite(numbers, self._policy().state_dict(), self.iteration)
        left = self.config.ppo.iterations - self.iteration
        row |= {"time": time.time(), "iterations": self.config.ppo.iterations, "c_nfe": self.reward.c_nfe}
        row["time_left_s"] = self._time_left(left)
        return row

    def _time_left(self, iterations: int) -> float:
        left = iterations * (self.seconds + self._watch.seconds) / max(self.iteration, 1)
        limit = self.config.ppo.time_limit_s
        return left if limit is None else min(left, max(limit - self.seconds, 0.0))

    # -- what is left behind -------------------------------------------------------------------------

    def _policy(self) -> PolicyNetwork:
        network: PolicyNetwork = self.algorithm.env_runner.module.policy
        return network

    def _save_policy(self, *, evaluated: bool) -> None:
        """Save the newest policy, unless it is the best one that is kept and this is not it."""
        watch = self._watch
        if self.config.watch.keep == "best" and watch.evaluations and not (evaluated and watch.is_best()):
            return
        self._write("the policy", self._write_policy)

    def _write_policy(self) -> None:
        metadata = self.metadata()
        metadata["engine"] = pack_region_head(self.policy_dir, metadata["engine"])
        save_policy(self.policy_dir, self._policy(), metadata)

    def metadata(self) -> dict[str, Any]:
        """What must be known to act with the policy: its world, its observation, its actions."""
        config = self.config.as_dict()
        return {
            "backbone": self.described.identity,
            "backbone_config": config["backbone"],
            "engine": config["engine"],
            "observation": config["observation"],
            "sizes": asdict(self.described.observer.sizes),
            "actions": list(self.config.engine.actions),
            "run": self.config.name,
            "seed": self.config.seed,
            "iteration": self.iteration,
        }

    def _save_checkpoint(self) -> None:
        assert self.reward.sigma is not None, "the run is not calibrated"
        state = checkpoints.RunState(
            iteration=self.iteration,
            c_nfe=self.reward.c_nfe,
            sigma=self.reward.sigma,
            scales=dict(self.reward.scales),
            seconds=self.seconds,
            price=self.budget.state(),
        )
        folder, keep = self.run_dir / "checkpoints", self.config.checkpoints.keep
        self._write(
            "the checkpoint",
            lambda: checkpoints.save(self.algorithm, folder, state, self.policy_dir, keep=keep),
        )

    def _write(self, what: str, write: Callable[[], object]) -> None:
        """Write what a run cannot go on without. Raises TrainingFailure where the disk does not take it."""
        try:
            write()
        except OSError as error:
            raise TrainingFailure(
                f"{what} of iteration {self.iteration} could not be written to {self.run_dir} "
                f"({error.strerror or error}); what was saved before is whole, and --resume goes on from it",
                "disk",
            ) from error

    def register(self, ended: str, seconds: float) -> str | None:
        """Leave result.json, and a new version in the registry if there is one and it answers.

        A run that had ended, and was only asked to go on, keeps the version that it has.
        """
        known = registration.known_version(self.run_dir, self.iteration)
        result = registration.Result(ended, self.iteration, seconds, known)
        self._write("result.json", lambda: result.write(self.run_dir))
        settings = self.config.registry
        if known is not None or not settings.enabled or not self.policy_dir.exists():
            return known
        self.report({"phase": "registering"})
        self._log.close()
        return registration.register_patiently(self.run_dir, settings.patience_s, self.events)
