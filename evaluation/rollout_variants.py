"""What `bench rollout` measures: the ways to make the same images that are compared with each other.

Always true here: both sides of a comparison make the same number of denoiser calls on the same networks, for
prompts that nobody has encoded yet; policies are asked for every decision, but what is done is planned by
seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray

from actors.backbones.flux import prompt_tokens
from actors.continuous import decide
from actors.contracts import Backbone, EpisodeRequest, EpisodeResult, QualityScorer
from actors.engine import Engine, EngineConfig, Episode
from actors.observations import ObservationConfig, ObservationSizes, Observer, PolicyView
from actors.policy import PolicyDecider, PolicyNetwork
from actors.rollout import rollout
from evaluation.stopwatch import TimedBackbone, clock

if TYPE_CHECKING:
    from rewards_service.arithmetic import RewardConfig
    from rewards_service.contracts import RewardClient

DECODED_AT_ONCE = 8
"""Images, where only memory counts: a batch of slots need not be decoded in one call."""
VIEWS: tuple[PolicyView, ...] = ("latent", "timestep", "seed")


@dataclass(frozen=True)
class Workload:
    """What is measured.

    scorer: gives what the `seed` view needs; client: scores in another process what `reward` asks for, of
    episodes whose policy leans towards `continue` by `continue_logit`.
    """

    pipeline: Any
    backbone: Backbone
    engine: EngineConfig
    prompts: Sequence[str]
    slots: int
    episodes: int
    repeats: int
    scorer: QualityScorer | None = None
    embedding_dim: int = 768
    client: RewardClient | None = None
    reward: RewardConfig | None = None
    continue_logit: float = 0.0

    @property
    def views(self) -> tuple[PolicyView, ...]:
        """Those that can be observed."""
        return VIEWS if self.scorer is not None else VIEWS[:2]


class PlannedStops:
    """Asks the network, then does what the episode's seed says: so many continues, then stop.

    Without a plan it always continues. What is measured is the same for every view and number of slots.
    """

    def __init__(self, decider: PolicyDecider, engine: Engine, planned: bool) -> None:
        self._decider = decider
        self._continue, self._stop = (engine.action_names.index(name) for name in ("continue", "stop"))
        config = engine.config
        self._decisions = max(1, config.num_steps - config.warmup_steps)
        self._planned = planned

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """An action index for each episode."""
        choices_B = self._decider(episodes, observations_BD, mask_BA)
        for row, episode in enumerate(episodes):
            ends = self._planned and len(episode.decisions) >= self._length(episode.request.seed)
            goes_on = mask_BA[row, self._continue] and not ends
            choices_B[row] = self._continue if goes_on else self._stop
        return choices_B

    def _length(self, seed: int) -> int:
        return int(np.random.default_rng(seed).integers(self._decisions))


class Variants:
    """A workload with its engines, observers and untrained policies made once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.backbone = TimedBackbone(workload.backbone)
        config = workload.engine
        self.engine = Engine(cast(Backbone, self.backbone), continue_or_stop(config))
        self.device = workload.backbone.device
        self.parts = {view: self._parts(view) for view in workload.views}
        self._drawn = 0
        self._engine_first = False

    def requests(self, count: int) -> list[EpisodeRequest]:
        """Prompts that nobody has encoded yet: a cache would make the engine look better than it is."""
        first, self._drawn = self._drawn, self._drawn + count
        prompts = self.workload.prompts
        return [
            EpisodeRequest(prompts[number % len(prompts)] + _blanks(number), number)
            for number in range(first, first + count)
        ]

    def rollout(self) -> dict[str, float]:
        """Many episodes of different lengths, nothing scored: utilisation and episodes a second."""
        seconds, _ = self._timed("latent", self.requests(self.workload.episodes), self.workload.slots)
        busy = sum(self.backbone.take_seconds())
        return {"denoiser_utilisation": busy / seconds, "episodes_per_s": self.workload.episodes / seconds}

    def serial_and_batched(self) -> dict[str, float]:
        """The same episodes one at a time with `seed`, and `slots` at a time with `seed` and `latent`."""
        requests = self.requests(self.workload.episodes)
        serial, alone = self._timed("seed", requests, 1)
        batched, together = self._timed("seed", requests, self.workload.slots)
        latent, likewise = self._timed("latent", requests, self.workload.slots)
        assert alone == together == likewise, "serial and batched took different decisions"
        return {"serial_s": serial, "batched_s": batched, "batched_latent_s": latent}

    def engine_and_stock(self) -> dict[str, float]:
        """One batch to the end of the schedule and decoded, by the engine and by diffusers."""
        requests = self.requests(self.workload.slots)
        measures = {"engine_s": self._engine_images, "stock_s": self._stock_images}
        self._engine_first = not self._engine_first  # a machine that slows down favours neither
        order = list(measures) if self._engine_first else list(measures)[::-1]
        return {name: measures[name](requests) for name in order}

    def decisions(self) -> dict[str, float]:
        """Each view's batched decision against the denoiser calls around it."""
        seconds = {}
        for view in self.workload.views:
            seconds[f"decision_{view}_s"], seconds[f"step_{view}_s"] = self._decision_seconds(view)
        return seconds

    def scoring(self) -> dict[str, float]:
        """Two groups as in training: one is scored in another process while the other denoises.

        The prompts are the same in every repetition, as they are in every pass of a training run.
        """
        from actors.collector import Collector
        from actors.ledger import Target
        from actors.trajectory import TrainingRequest
        from rewards_service.arithmetic import required_outputs

        client, reward = self.workload.client, self.workload.reward
        assert client is not None
        assert reward is not None
        observer, decider = self.parts["latent"]
        collector = Collector(self.engine, observer, client, slots=self.workload.slots, groups=2)
        target = Target(dict.fromkeys(required_outputs(reward), 0.0))
        prompts = self.workload.prompts
        requests = [
            EpisodeRequest(prompts[number % len(prompts)], number) for number in range(self.workload.episodes)
        ]

        def policy(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
            policy_BD, _, _ = observer.split(torch.from_numpy(observations_BD))
            with torch.inference_mode():
                return decider.network(policy_BD, torch.from_numpy(mask_BA)).numpy()

        self.backbone.take_seconds()
        start = clock(self.device)
        collector.collect(
            [TrainingRequest(request, (request.seed,), target) for request in requests], policy, reward
        )
        seconds = clock(self.device) - start
        calls_s = self.backbone.take_seconds()
        busy, calls = sum(calls_s), len(calls_s)
        return {
            "denoiser_utilisation_scoring": busy / seconds,
            "episodes_per_s_scoring": len(requests) / seconds,
            "previews_per_call_scoring": collector.times.previews / calls,
        }

    def with_previews(self) -> None:
        """A rollout with a preview at each decision, and its images: what memory is audited on."""
        observer, decider = self.parts["latent"]
        results = rollout(
            self.engine,
            PlannedStops(decider, self.engine, planned=True),
            observer,
            self.requests(self.workload.slots),
            slots=self.workload.slots,
            scorer=None,
            record_previews=True,
        )
        self._decode(results, DECODED_AT_ONCE)

    def _parts(self, view: PolicyView) -> tuple[Observer, PolicyDecider]:
        backbone = self.workload.backbone
        sizes = ObservationSizes(backbone.feature_dim, backbone.text_dim, self.workload.embedding_dim)
        scores = ("image_reward",)
        observer = Observer(ObservationConfig(view, look_scores=scores), sizes, self.engine.action_names)
        network = PolicyNetwork(observer.policy_dim, self.engine.num_actions)
        leaning = [self.workload.continue_logit if name == "continue" else 0.0 for name in observer.actions]
        network.set_initial_logits(leaning)
        return observer, PolicyDecider(network, observer)

    def _timed(
        self, view: PolicyView, requests: Sequence[EpisodeRequest], slots: int
    ) -> tuple[float, list[int]]:
        """Seconds of a rollout of different lengths, and each episode's NFE."""
        observer, decider = self.parts[view]
        stops = PlannedStops(decider, self.engine, planned=True)
        self.backbone.take_seconds()
        start = clock(self.device)
        results = rollout(self.engine, stops, observer, requests, slots=slots, scorer=self.workload.scorer)
        return clock(self.device) - start, [result.nfe for result in results]

    def _engine_images(self, requests: Sequence[EpisodeRequest]) -> float:
        observer, decider = self.parts["latent"]
        start = clock(self.device)
        results = rollout(
            self.engine,
            PlannedStops(decider, self.engine, planned=False),
            observer,
            requests,
            slots=len(requests),
            scorer=None,
        )
        self._decode(results, len(results))
        return clock(self.device) - start

    def _decode(self, results: Sequence[EpisodeResult], batch: int) -> None:
        latents_BCHW = torch.stack([result.latents_CHW for result in results])
        for part_BCHW in torch.split(latents_BCHW, batch):
            self.workload.backbone.decode(part_BCHW)

    def _stock_images(self, requests: Sequence[EpisodeRequest]) -> float:
        pipeline, config = self.workload.pipeline, self.engine.config
        pipeline.set_progress_bar_config(disable=True)
        height, width = (side * pipeline.vae_scale_factor for side in self.backbone.latent_shape[1:])
        options = {}
        if isinstance(pipeline, FluxPipeline):  # as many T5 tokens as the backbone takes
            options["max_sequence_length"] = prompt_tokens(pipeline.transformer)
        start = clock(self.device)
        pipeline(
            [request.prompt for request in requests],
            num_inference_steps=config.num_steps,
            guidance_scale=1.0 if config.guidance_rule == "none" else config.guidance_scale,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            output_type="np",
            **options,
        )
        return clock(self.device) - start

    def _decision_seconds(self, view: PolicyView) -> tuple[float, float]:
        """Medians over a full batch's way to the end: of a decision, and of a denoiser call."""
        observer, decider = self.parts[view]
        stops = PlannedStops(decider, self.engine, planned=False)
        episodes = self.engine.begin(self.requests(self.workload.slots))
        self.backbone.take_seconds()
        seconds = []
        while not all(episode.finished for episode in episodes):
            self.engine.denoise(episodes)
            deciding = [episode for episode in episodes if episode.state == "deciding"]
            if deciding:
                start = clock(self.device)
                decide(self.engine, stops, observer, self.workload.scorer, deciding)
                seconds.append(clock(self.device) - start)
        return median(seconds), median(self.backbone.take_seconds())


def _blanks(number: int) -> str:
    """The number in spaces and tabs: another text, but the same tokens."""
    return f"{number:b}".translate(str.maketrans("01", " \t"))


def continue_or_stop(config: EngineConfig) -> EngineConfig:
    """The same denoising with two actions, and budgets that do not get in their way."""
    return replace(
        config,
        actions=("continue", "stop"),
        stop_from=0.0,
        max_nfe=config.num_steps,
        max_decisions=config.num_steps + 1,
    )
