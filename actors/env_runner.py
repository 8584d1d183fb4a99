"""The Ray actor that gathers training episodes: RLlib's EnvRunner around the `Collector`.

Always true here: `sample` gives whole episodes, this runner's share of a round's requests, in a fixed
order; which requests those are follows from the round's number alone, so a replaced runner goes on where it
was. A round is the iteration that the driver orders; runners of an asynchronous algorithm count their own.
The copy RLlib builds in the driver (`worker_index` 0) holds the policy and the state to hand on, but no
backbone, unless there is no other runner: then it samples itself.
"""

from __future__ import annotations

import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from actors import trajectory_store
from actors.branching import compare
from actors.collector import Collector
from actors.contracts import EpisodeRequest
from actors.engine import Engine
from actors.held_out import HeldOutEpisode, run_held_out
from actors.kept import Kept
from actors.observations import Observer
from actors.orders import ORDERS, ROUNDS, Orders, RunnerSettings, iteration_requests
from actors.references import Reference, reference_config, run_references
from actors.trajectory import TrainingRequest, Trajectory, final_scores
from rewards_service.arithmetic import RewardConfig, quality, required_outputs

_logger = logging.getLogger(__name__)
#: In an episode's `custom_data`: its prompt, and where it was forked what the comparison came to.
PROMPT = "prompt"
COMPARISON = "comparison"
#: Prefix of our own metrics in RLlib's results.
METRICS = "addiffusion"


class DiffusionEnvRunner(EnvRunner, Checkpointable):
    """Gathers episodes with the current policy; also runs the references before training."""

    # These two of the stock runner need `self.metrics` and `self.config` only.
    _increase_sampled_metrics = SingleAgentEnvRunner._increase_sampled_metrics
    _log_episode_metrics = SingleAgentEnvRunner._log_episode_metrics

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.settings: RunnerSettings = self.config.env_config["settings"]
        self.index = int(kwargs.get("worker_index") or 0)
        self.orders: Orders | None = None
        self.collector: Collector | None = None
        self.rounds = 0
        self._env_runner_state_server: Any = None  # RLlib's name: asynchronous algorithms set it
        self._weights_seq_no = 0
        self._finished: list[SingleAgentEpisode] = []
        self.make_module()
        if self._samples():
            self.make_env()

    def _samples(self) -> bool:
        return self.index > 0 or self.config.num_env_runners == 0

    def make_env(self) -> None:
        """Load the backbone and connect to the rewards service."""
        settings = self.settings
        torch.set_num_threads(settings.torch_threads)
        kept = settings.kept or Kept(settings.make_backbone, settings.memo_mib)
        engine = Engine(kept.backbone(), settings.engine, memo=kept.calls)
        assert engine.action_names == settings.observer.actions
        self.collector = Collector(
            engine,
            settings.observer,
            settings.make_client(),
            slots=settings.slots,
            groups=settings.groups,
            memo=kept.scores,
            record_previews=settings.trajectories is not None and settings.trajectory_previews,
        )

    def make_module(self) -> None:
        """Build the policy; its weights come by `set_state`."""
        logging.getLogger("ray._common.deprecation").setLevel(logging.ERROR)  # of calls of RLlib's own
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()

    def get_spaces(self) -> dict[str, Any]:
        """Observation and action space under every name RLlib asks for."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def assert_healthy(self) -> None:
        """RLlib's check after construction."""
        assert self.collector is not None or not self._samples()

    def stop(self) -> None:
        """Free the backbone."""
        self.collector = None

    @property
    def share(self) -> tuple[int, int]:
        """Which part of how many this runner takes of work that is spread over all."""
        return max(self.index - 1, 0), max(self.config.num_env_runners, 1)

    # -- what the training loop asks for -----------------------------------------------------------

    def take_orders(self, orders: Orders) -> None:
        """Iteration, reward and references for the next `sample`."""
        self.orders = orders
        if orders.rounds and self.index > 0:
            self.rounds = max(self.rounds, orders.rounds[self.index - 1])

    def run_references(
        self, requests: Sequence[EpisodeRequest], reward: RewardConfig, num_steps: int, *, observe: bool
    ) -> list[Reference]:
        """Run requests to the end of a schedule of `num_steps`; see `actors.references`."""
        assert self.collector is not None
        settings = self.settings
        config = reference_config(settings.engine, num_steps)
        engine = Engine(self.collector.engine.backbone, config, memo=self.collector.engine.memo)
        observer = settings.observer.for_actions(engine.action_names)
        collector = self._collector_beside(self.collector, engine, observer)
        return run_references(collector, requests, required_outputs(reward), observe=observe)

    def run_held_out(
        self, requests: Sequence[EpisodeRequest], score: str, pictured: Collection[EpisodeRequest]
    ) -> list[HeldOutEpisode]:
        """Run requests with the policy's best actions; see `actors.held_out`."""
        assert self.collector is not None
        collector = self._collector_beside(self.collector, self.collector.engine, self.settings.observer)
        return run_held_out(collector, requests, self._policy(explore=False), score, pictured)

    def _collector_beside(self, own: Collector, engine: Engine, observer: Observer) -> Collector:
        """Another one with this runner's client and scores; it counts for itself and writes no pictures."""
        slots, groups = self.settings.slots, self.settings.groups
        return Collector(engine, observer, own.client, slots=slots, groups=groups, memo=own.memo)

    # -- RLlib's interface ---------------------------------------------------------------------------

    def sample(self, *, explore: bool | None = None, **kwargs: Any) -> list[SingleAgentEpisode]:
        """This runner's episodes of the current round, all finished."""
        self._pull()
        orders, settings, collector = self.orders, self.settings, self.collector
        assert orders is not None, "sample() before take_orders()"
        assert collector is not None, "the driver's copy of the env runner cannot sample"
        explore = self.config.explore if explore is None else explore
        round_ = self.rounds if orders.rounds else orders.iteration
        chosen = iteration_requests(
            len(settings.requests),
            round_,
            settings.episodes_per_iteration,
            settings.seed,
            self.share,
            focus=orders.focus,
            focus_share=orders.focus_share,
            repeats=settings.episodes_per_request,
        )
        training = [self._training_request(round_, index, orders) for round_, index in chosen]
        gathered = collector.collect(training, self._policy(explore), orders.reward, greedy=not explore)
        written = self._keep(gathered, round_)
        self.rounds = round_ + 1
        trunks = [trajectory for trajectory in gathered if not trajectory.is_twin]
        self._log(trunks, twins=len(gathered) - len(trunks), unwritten=0 if written else len(gathered))
        episodes = self._episodes(gathered, orders.reward.gamma_d)
        self._finished.extend(episodes)
        return episodes

    def _keep(self, gathered: Sequence[Trajectory], round_: int) -> bool:
        """Write trajectories where they are wanted; False where the disk refuses."""
        if self.settings.trajectories is None:
            return True
        self._value(gathered)
        path = trajectory_store.file_name(Path(self.settings.trajectories), round_, self.index)
        try:
            trajectory_store.write(gathered, path, self._weights_seq_no)
        except OSError as error:
            _logger.warning("trajectories not written: %s", error)
            return False
        return True

    def sample_get_state_and_metrics(self) -> tuple[Any, dict[str, Any], Any]:
        """One round for an asynchronous algorithm: episodes, how many rounds are done, metrics."""
        episodes = self.sample()
        return episodes, {ROUNDS: self.rounds}, self.get_metrics()

    def _pull(self) -> None:
        """Take the newest weights and orders, where an asynchronous algorithm keeps them."""
        if self._env_runner_state_server is None:
            return
        state = ray.get(self._env_runner_state_server.pull.remote())
        if state is not None:  # it holds nothing from a restart of its own until the next update
            self.set_state(state)

    def _training_request(self, round_: int, index: int, orders: Orders) -> TrainingRequest:
        request, settings = self.settings.requests[index], self.settings
        stream = (settings.seed, round_, zlib.crc32(request.prompt.encode()), request.seed)
        fork_at = None
        if settings.branch_share > 0.0:
            draw = np.random.default_rng((*stream, 2))
            if draw.random() < settings.branch_share:
                fork_at = int(draw.integers(settings.engine.num_steps))
        return TrainingRequest(request, stream, orders.targets[index], fork_at)

    def _policy(self, explore: bool) -> Callable[..., NDArray[np.float32]]:
        forward = self.module.forward_exploration if explore else self.module.forward_inference

        def logits(observations_BD: NDArray[np.float32], _: NDArray[np.bool_]) -> NDArray[np.float32]:
            with torch.inference_mode():
                outputs = forward({Columns.OBS: torch.from_numpy(observations_BD)})
            result: NDArray[np.float32] = outputs[Columns.ACTION_DIST_INPUTS].numpy()
            return result

        return logits

    def _value(self, gathered: Sequence[Trajectory]) -> None:
        """Enter the critic's values; the learner computes its own, so nothing is learnt from these."""
        if not gathered:
            return
        lengths = [len(trajectory.observations) for trajectory in gathered]
        observations_ND = np.concatenate([trajectory.observations for trajectory in gathered])
        with torch.inference_mode():
            values_N = self.module.compute_values({Columns.OBS: torch.from_numpy(observations_ND)})
        for trajectory, values_T in zip(gathered, values_N.split(lengths), strict=True):
            trajectory.values = values_T.tolist()

    def _episodes(self, gathered: Sequence[Trajectory], gamma: float) -> list[SingleAgentEpisode]:
        """What the learner gets: every trunk in full, and of a twin the part that begins at its fork."""
        episodes: list[SingleAgentEpisode] = []
        for place, trajectory in enumerate(gathered):
            episodes.append(self._episode(trajectory))
            if trajectory.is_twin:
                sides = compare(gathered[place - 1], trajectory, gamma)
                for episode, side in zip(episodes[-2:], sides, strict=True):
                    episode.custom_data[COMPARISON] = side
        return episodes

    def _episode(self, trajectory: Trajectory) -> SingleAgentEpisode:
        start = trajectory.forked_at or 0 if trajectory.is_twin else 0
        observations = trajectory.observations[start:]
        # A terminated episode's last observation is never valued; RLlib wants one more than actions.
        episode = SingleAgentEpisode(
            id_=trajectory_store.episode_id(trajectory),
            observations=[*observations, observations[-1]],
            observation_space=self.config.observation_space,
            actions=trajectory.actions[start:],
            action_space=self.config.action_space,
            rewards=trajectory.rewards[start:],
            terminated=True,
            extra_model_outputs={
                Columns.ACTION_LOGP: [np.float32(value) for value in trajectory.log_probs[start:]],
                Columns.ACTION_DIST_INPUTS: trajectory.logits[start:],
            },
            len_lookback_buffer=0,
        ).to_numpy()
        episode.custom_data[PROMPT] = trajectory.training.request.prompt
        return episode

    def _log(self, gathered: Sequence[Trajectory], *, twins: int, unwritten: int) -> None:
        assert self.collector is not None
        assert self.orders is not None
        times, names = self.collector.times, self.collector.engine.action_names
        sums: dict[str, float] = defaultdict(float)
        for trajectory in gathered:
            result = trajectory.result
            assert result is not None
            sums["episodes"] += 1
            sums["decisions"] += len(trajectory.actions)
            sums["return"] += sum(trajectory.rewards)
            for parts in trajectory.parts:
                for name, value in parts._asdict().items():
                    sums[f"reward/{name}"] += value
            sums["quality"] += trajectory.quality
            reference = quality(trajectory.training.target.reference, self.orders.reward)
            sums["quality_over_reference"] += trajectory.quality - reference
            sums["nfe"] += result.nfe
            sums["nfe_squared"] += result.nfe**2
            sums["cost"] += result.cost
            sums["entropy"] += sum(trajectory.entropies)
            sums["weights_seq_no"] += self._weights_seq_no
            for name, value in final_scores(trajectory).items():
                sums[f"score/{name}"] += value
            for action in trajectory.actions:
                sums[f"action/{names[action]}"] += 1
        sums |= {"seconds": times.wall, "denoising_s": times.denoising, "waiting_s": times.waiting}
        sums |= {"previews": times.previews, "twins": twins, "unwritten": unwritten}
        sums |= {"calls": times.calls, "remembered": times.remembered}
        for name, value in sums.items():
            self.metrics.log_value((METRICS, name), value, reduce="sum")
        decisions = int(sums["decisions"])
        self.num_env_steps_sampled_lifetime += decisions
        self._increase_sampled_metrics(decisions, len(gathered))

    def get_metrics(self) -> Any:
        """Metrics since the last call, as RLlib aggregates them over runners."""
        for episode in self._finished:
            self._log_episode_metrics(len(episode), episode.get_return(), episode.get_duration_s())
        self._finished.clear()
        return self.metrics.reduce()

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Weights with their version, and the orders: all that a replaced runner needs."""
        state: dict[str, Any] = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}
        if self.orders is not None:
            state[ORDERS] = self.orders
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(**kwargs)
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take weights unless they are older than those held; version 0 always counts as newer."""
        if COMPONENT_RL_MODULE in state:
            version = state.get(WEIGHTS_SEQ_NO, 0)
            if version == 0 or version > self._weights_seq_no:
                weights = state[COMPONENT_RL_MODULE]
                if isinstance(weights, ray.ObjectRef):
                    weights = ray.get(weights)
                self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
            if version > 0:
                self._weights_seq_no = version
        if ORDERS in state:
            orders = state[ORDERS]
            self.take_orders(ray.get(orders) if isinstance(orders, ray.ObjectRef) else orders)
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        """How Checkpointable builds this object again."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """The parts that are saved by themselves."""
        return [(COMPONENT_RL_MODULE, self.module)]
