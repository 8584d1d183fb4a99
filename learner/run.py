"""One training run under way: the algorithm, the calibrated reward, the counters, what it saves.

Always true here: the policy's folder holds the newest finite policy, whatever ends the run; every
iteration starts by telling all env runners its number and the reward, so that a replaced one is up to
date; price, scales and sigma change only here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import DEFAULT_MODULE_ID

from actors.contracts import EpisodeRequest
from actors.env_runner import Orders, RunnerSettings
from actors.ledger import Target
from actors.policy import PolicyNetwork, save_policy
from actors.references import Reference
from learner import calibration, checkpoints, references, registry, session
from learner.config import RunConfig
from learner.env_runners import EnvRunners
from learner.guards import CollapseDetector, LostEpisodes, StopRequest, check_finite
from learner.ppo import hard_share, ppo_config, set_schedules
from learner.progress import ProgressFile, iteration_row
from learner.reference_runs import ReferenceRuns
from rewards_service.arithmetic import RewardConfig, dual_variable, quality

Progress = Callable[[dict[str, Any]], None]
#: How long all env runners may be gone.
_RESTART_S = 180.0
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
        self.iteration = 0
        self.seconds = 0.0
        self.reward: RewardConfig = config.reward
        self.row: dict[str, Any] = {}
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
            trajectories=str((run_dir / "trajectories").absolute())
            if config.checkpoints.trajectories
            else None,
        )
        self.algorithm: PPO = ppo_config(config, self.settings).build_algo()
        self._runners = EnvRunners(self.algorithm, resources.num_env_runners, _RESTART_S)
        self._references = ReferenceRuns(
            config,
            requests,
            self._runners,
            report,
            backbone=self.described.identity,
            scorers=world.scorers,
            folder=run_dir.parent / references.FOLDER,
        )
        self.targets: tuple[Target, ...] = ()
        self.hard: tuple[int, ...] = ()

    def close(self) -> None:
        """Stop the env runners."""
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

    def resume(self, checkpoint: Path, state: checkpoints.RunState) -> None:
        """Go on where a checkpoint was written."""
        checkpoints.restore(self.algorithm, checkpoint)
        self.iteration, self.seconds = state.iteration, state.seconds
        calibrated = calibration.Calibration(state.scales, state.sigma).applied(self.reward)
        self.reward = replace(calibrated, c_nfe=state.c_nfe)
        self._begin(self._references.complete(self.reward))

    def _begin(self, found: Sequence[Reference]) -> None:
        """Set the targets, and give all env runners the learner's weights."""
        self.targets = self._references.targets(found, self.reward)
        self.hard = calibration.hardest([quality(reference.scores, self.reward) for reference in found])
        self._runners.sync_weights()

    # -- the iterations ------------------------------------------------------------------------------

    def iterate(self, stop: StopRequest) -> str:
        """Iterations until the last one or until something ends the run; gives what ended it."""
        ppo = self.config.ppo
        file = ProgressFile(self.run_dir / "progress.jsonl", self.iteration + 1)
        lost, collapse = LostEpisodes(ppo.episodes_per_iteration), CollapseDetector()
        price = dual_variable(self.reward)
        ended = "finished"
        saved_at = self.iteration
        while self.iteration < ppo.iterations:
            if stop.signalled or (ppo.time_limit_s is not None and self.seconds >= ppo.time_limit_s):
                ended = "interrupted" if stop.signalled else "time limit"
                break
            row = self._iterate_once()
            lost.update(row["episodes"], time.monotonic())
            file.append(row)
            self.report(row | {"phase": "training"})
            if row["episodes"] == 0:
                continue
            self.row = row
            if price is not None:
                observed = "nfe" if self.reward.target_nfe is not None else "quality_over_reference"
                self.reward = replace(self.reward, c_nfe=price.update(row[observed]))
            self._save_policy()
            if self.iteration % self.config.checkpoints.every == 0:
                self._save_checkpoint()
                saved_at = self.iteration
            if collapse.update(row["actions"], row["nfe"], row["nfe_std"]):
                ended = "collapsed"
                break
        if saved_at < self.iteration:
            self._save_checkpoint()
        return ended

    def _iterate_once(self) -> dict[str, Any]:
        self._runners.wait()
        orders = Orders(
            self.iteration,
            self.reward,
            self.targets,
            self.hard,
            hard_share(self.config.ppo, self.iteration),
        )
        self._runners.take_orders(orders)
        set_schedules(self.algorithm, self.config.ppo, self.iteration)
        started = time.monotonic()
        results = self.algorithm.train()
        spent = time.monotonic() - started
        self.iteration += 1
        self.seconds += spent
        row = iteration_row(results, iteration=self.iteration, seconds=spent)
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        check_finite(numbers, self._policy().state_dict(), self.iteration)
        left = self.config.ppo.iterations - self.iteration
        row |= {"iterations": self.config.ppo.iterations, "c_nfe": self.reward.c_nfe}
        row["time_left_s"] = self._time_left(left)
        return row

    def _time_left(self, iterations: int) -> float:
        left = iterations * self.seconds / max(self.iteration, 1)
        limit = self.config.ppo.time_limit_s
        return left if limit is None else min(left, max(limit - self.seconds, 0.0))

    # -- what is left behind -------------------------------------------------------------------------

    def _policy(self) -> PolicyNetwork:
        network: PolicyNetwork = self.algorithm.env_runner.module.policy
        return network

    def _save_policy(self) -> None:
        save_policy(self.policy_dir, self._policy(), self.metadata())

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
        )
        checkpoints.save(
            self.algorithm, self.run_dir / "checkpoints", state, keep=self.config.checkpoints.keep
        )

    def register(self, ended: str, seconds: float) -> str | None:
        """A new version in the registry; a collapsed policy gets no alias."""
        settings = self.config.registry
        if not settings.enabled or not self.policy_dir.exists():
            return None
        self.report({"phase": "registering"})
        numbers = {name: value for name, value in self.row.items() if isinstance(value, (int, float))}
        return registry.register(
            self.policy_dir,
            name=registry.model_name(self.config.backbone.name),
            uri=settings.tracking_uri or registry.tracking_uri(self.run_dir.parent),
            experiment=settings.experiment,
            run_name=self.config.name,
            metrics={name: numbers[name] for name in registry.METRICS if name in numbers}
            | {"seconds_total": seconds},
            params=registry.filtered(self.config.as_dict()),
            tags={"backbone": self.described.identity, "run_dir": str(self.run_dir), "ended": ended},
            alias=None if ended == "collapsed" else settings.alias,
        )
