"""One training run under way: the algorithm, the calibrated reward, the counters, what it saves.

Always true here: the policy's folder holds the newest finite policy, whatever ends the run; every
iteration starts by telling all env runners its number and the reward, so that a replaced one is up to
date; price, scales and sigma change only here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID

from actors.contracts import EpisodeRequest
from actors.env_runner import DiffusionEnvRunner, Orders, RunnerSettings
from actors.ledger import Target
from actors.policy import PolicyNetwork, save_policy
from actors.references import Reference, ReferenceKind, reference_config
from learner import calibration, checkpoints, references, registry, session
from learner.algorithms import algorithm_config, give_orders
from learner.config import RunConfig
from learner.gradients import check_skipped
from learner.guards import CollapseDetector, LostEpisodes, StopRequest, TrainingFailure, check_finite
from learner.ppo import hard_share, set_schedules
from learner.progress import ProgressFile, iteration_row
from rewards_service.arithmetic import RewardConfig, dual_variable, quality, required_outputs

Progress = Callable[[dict[str, Any]], None]
#: Requests whose references are scored all the way, for normalisation and score scales.
_CALIBRATION_REQUESTS = 64
#: How often what is left of a chunk of references is given out, and how long a restart may take.
_ATTEMPTS = 5
_RESTART_S = 180.0
CALIBRATION = "calibration.yaml"
"""In a run's folder; `addiffusion train @FILE` takes it."""
#: The seeds' second reward compares DDIM-50 with DDIM-20.
_SHORT = 0.4


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
        self._world = world
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
            trajectories=str((run_dir / "trajectories").absolute())
            if config.checkpoints.trajectories
            else None,
        )
        self.algorithm: Algorithm = algorithm_config(config, self.settings).build_algo()
        self.targets: tuple[Target, ...] = ()
        self.hard: tuple[int, ...] = ()

    def close(self) -> None:
        """Stop the env runners."""
        self.algorithm.stop()

    # -- before the first iteration ------------------------------------------------------------------

    def calibrate(self) -> None:
        """Run the references; fix the input normalisation, the scores' scales and sigma on them."""
        num_steps = self.config.engine.num_steps
        pieces = self._run_references(self.requests[:_CALIBRATION_REQUESTS], num_steps, observe=True)
        observed = [reference for piece in pieces for reference in piece]
        statistics = calibration.normalisation(observed, self.described.observer)
        mean_D, std_D = torch.from_numpy(statistics.mean_D), torch.from_numpy(statistics.std_D)
        self.algorithm.learner_group.foreach_learner(
            lambda learner: learner.module[DEFAULT_MODULE_ID].unwrapped().set_normalisation(mean_D, std_D)
        )
        found = self._table(num_steps, observed)
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
        self._begin(self._table(self.config.engine.num_steps, []))

    def _begin(self, found: Sequence[Reference]) -> None:
        """Set the targets, and give all env runners the learner's weights."""
        sigma = self._sigma()
        shorter: list[Reference] | None = None
        if self.reward.profile == "seed_v2":
            shorter = self._table(max(round(_SHORT * self.config.engine.num_steps), 1), [])
        self.targets = tuple(
            Target(reference.scores, sigma, None if shorter is None else shorter[index].scores)
            for index, reference in enumerate(found)
        )
        self.hard = calibration.hardest([quality(reference.scores, self.reward) for reference in found])
        self.algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.algorithm.learner_group, inference_only=True
        )

    def _sigma(self) -> float:
        assert self.reward.sigma is not None, "the run is not calibrated"
        return self.reward.sigma

    def _table(self, num_steps: int, observed: Sequence[Reference]) -> list[Reference]:
        """References of all requests on a schedule of `num_steps`, shared with other runs or run now."""
        engine, dtype = reference_config(self.config.engine, num_steps), self.config.backbone.dtype
        kind = ReferenceKind.of(engine, self.described.identity, dtype, self._world.scorers)
        store = references.ReferenceStore(self.run_dir.parent / references.FOLDER, kind)
        store.add(observed)
        return store.complete(
            self.requests,
            [name for name in required_outputs(self.reward) if name != "dino"],
            lambda missing: self._run_references(missing, num_steps, observe=False),
        )

    def _run_references(
        self, requests: Sequence[EpisodeRequest], num_steps: int, *, observe: bool
    ) -> Iterator[list[Reference]]:
        """Computed by all env runners in parallel, a chunk at a time so that progress is seen."""
        resources = self.config.resources
        chunk = resources.slots * max(resources.num_env_runners, 1)
        before = len(self.requests) - len(requests) if not observe else 0
        for start in range(0, len(requests), chunk):
            now = requests[start : start + chunk]
            yield self._run_chunk(now, num_steps, observe)
            done = before + start + len(now)
            self.report({"phase": "references", "done": done, "total": len(self.requests)})

    def _run_chunk(
        self, requests: Sequence[EpisodeRequest], num_steps: int, observe: bool
    ) -> list[Reference]:
        """What a dying env runner leaves undone is done by those that live."""
        group, reward = self.algorithm.env_runner_group, self.reward
        done: dict[EpisodeRequest, Reference] = {}
        for _ in range(_ATTEMPTS):
            self._await_env_runners()
            left = [request for request in requests if request not in done]
            live = group.healthy_env_runner_ids() or [0]

            def run_share(runner: DiffusionEnvRunner) -> list[Reference]:
                share = left[live.index(runner.index) :: len(live)]  # noqa: B023
                return runner.run_references(share, reward, num_steps, observe=observe)

            parts = group.foreach_env_runner(run_share, local_env_runner=live == [0])
            done |= {reference.request: reference for part in parts for reference in part}
            if len(done) == len(requests):
                return [done[request] for request in requests]
        raise TrainingFailure("references: the env runners kept failing; their own messages say why")

    def _await_env_runners(self) -> None:
        """Wait until one env runner lives; RLlib goes on without any, at once and with empty results."""
        group = self.algorithm.env_runner_group
        if self.config.resources.num_env_runners == 0:
            return
        deadline = time.monotonic() + _RESTART_S
        while group.num_healthy_remote_env_runners() == 0:
            self.algorithm.restore_env_runners(group)
            if time.monotonic() > deadline:
                raise TrainingFailure(
                    f"no env runner came back within {_RESTART_S:.0f} s; their own messages say why"
                )
            time.sleep(1.0)

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
        self._await_env_runners()
        orders = Orders(
            self.iteration,
            self.reward,
            self.targets,
            self.hard,
            hard_share(self.config.ppo, self.iteration),
        )
        give_orders(self.algorithm, orders)
        set_schedules(self.algorithm, self.config.ppo, self.iteration)
        started = time.monotonic()
        results = self.algorithm.train()
        spent = time.monotonic() - started
        self.iteration += 1
        self.seconds += spent
        row = iteration_row(results, iteration=self.iteration, seconds=spent)
        check_skipped(row, self.config.algorithm.max_skipped_updates)
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
        state = checkpoints.RunState(
            iteration=self.iteration,
            c_nfe=self.reward.c_nfe,
            sigma=self._sigma(),
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
