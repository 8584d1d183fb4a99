"""Early stopping in an ordinary StableDiffusionPipeline: a policy as its `callback_on_step_end`.

    stop = stop_callback("runs/run/policy", pipeline)
    pipeline.scheduler = stop.scheduler
    image = pipeline("a red fox", **stop.options).images[0]

The pipeline itself denoises. Hooks on its networks keep what a step has seen and predicted; the engine that
the policy was trained with decides on that, without a network of its own; once it stops, the callback ends
the loop and gives the pipeline the clean prediction to decode.

Always true here: a row's image is the clean prediction of the step at which the policy stopped it, the last
step included. Each of several rows gets the image it was stopped at, but the loop ends with the last of them:
batches that are to get cheaper row by row are AdaptiveSampler's. The hooks go when the callback does.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from actors.backbones.from_pipeline import identity_of, warn_if_unknown
from actors.backbones.schedulers import SCHEDULERS, matching_scheduler
from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import Engine, Episode
from actors.errors import UserError
from actors.observations import Observer
from actors.policy import PolicyDecider
from actors.policy_folder import read_trained_policy
from actors.replay import ReplayedBackbone
from actors.solvers import clean_prediction

ACTIONS = ("continue", "stop")
VIEWS = ("latent", "timestep")
SOLVERS = ("ddim", "dpmpp")


@dataclass
class _Recording:
    """The pipeline's last calls; the networks' batches are as it made them, null rows first."""

    prompts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Of each text encoder call before the first denoiser call: token ids, their embeddings, pooled ones."""
    mid_block: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    text: torch.Tensor | None = None
    prediction: torch.Tensor | None = None

    def hook(self, pipeline: Any) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch the pipeline's networks."""
        return [
            pipeline.text_encoder.register_forward_hook(self._after_text_encoder),
            pipeline.unet.mid_block.register_forward_hook(self._after_mid_block),
            pipeline.unet.register_forward_hook(self._after_unet, with_kwargs=True),
        ]

    def _after_text_encoder(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self.prediction is not None:  # of an earlier image
            self.prompts, self.prediction = [], None
        self.prompts.append((inputs[0], output.last_hidden_state, output.pooler_output))

    def _after_mid_block(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.mid_block = output

    def _after_unet(self, module: torch.nn.Module, inputs: Any, options: Any, output: Any) -> None:
        self.latents, self.text, self.prediction = inputs[0], options["encoder_hidden_states"], output[0]


class StopCallback:
    """What `stop_callback` makes. One image or batch at a time; it may be used again and again."""

    def __init__(self, pipeline: Any, engine: Engine, observer: Observer, decider: PolicyDecider) -> None:
        self._pipeline, self._engine, self._observer, self._decider = pipeline, engine, observer, decider
        self._running: list[Episode] = []
        self._clean: list[torch.Tensor | None] = []
        self._recording = _Recording()
        for handle in self._recording.hook(pipeline):
            weakref.finalize(self, handle.remove)

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler, or another one, set to the schedule that the policy was trained on."""
        return matching_scheduler(self._pipeline.scheduler, self._engine.config)

    @property
    def options(self) -> dict[str, Any]:
        """What to call the pipeline with, beside the prompt."""
        config = self._engine.config
        return {
            "num_inference_steps": config.num_steps,
            "guidance_scale": config.guidance_scale,
            "callback_on_step_end": self,
        }

    @property
    def episodes(self) -> tuple[EpisodeResult, ...]:
        """What was decided about each row of the last batch; its seed is the pipeline's matter and says 0."""
        return tuple(
            replace(episode.result(), latents_CHW=clean_CHW)
            for episode, clean_CHW in zip(self._running, self._clean, strict=True)
            if clean_CHW is not None
        )

    def __call__(
        self, pipeline: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """As diffusers calls it; ends the loop with the clean latents once every row is stopped.

        Raises UserError where the pipeline does not walk the schedule that the policy was trained on.
        """
        seen = self._recording
        assert seen.prediction is not None
        assert seen.latents is not None
        assert seen.mid_block is not None
        count = len(seen.prediction) // (2 if pipeline.do_classifier_free_guidance else 1)
        if step == 0:
            self._check_schedule(pipeline)
            self._begin(count)
        waiting = [row for row, episode in enumerate(self._running) if not episode.finished]
        features_BF = seen.mid_block[-count:].float().mean(dim=(2, 3))
        self._decide([self._running[row] for row in waiting], features_BF[waiting])
        stopped = [row for row in waiting if self._running[row].finished]
        if stopped:
            clean_BCHW = self._clean_prediction(count, step)
            for row in stopped:
                self._clean[row] = clean_BCHW[row]
        finished = [clean_CHW for clean_CHW in self._clean if clean_CHW is not None]
        if len(finished) < count:
            return {}
        pipeline._interrupt = True
        return {"latents": torch.stack(finished).to(seen.latents.dtype)}

    def _begin(self, count: int) -> None:
        backbone = self._backbone
        backbone.pooled_BD = torch.zeros(count, backbone.text_dim)
        prompts = [""] * count
        for ids, embeddings_BLD, pooled_BD in self._recording.prompts:
            repeats, rest = divmod(count, len(ids))
            if rest == 0 and self._is_prompt(embeddings_BLD.repeat_interleave(repeats, 0)):
                backbone.pooled_BD = pooled_BD.repeat_interleave(repeats, 0)
                texts = self._pipeline.tokenizer.batch_decode(ids, skip_special_tokens=True)
                prompts = [text for text in texts for _ in range(repeats)]
                break
        else:
            if self._observer.config.policy == "latent":
                raise UserError(
                    "prompt_embeds or clip_skip is given, which hides the prompt from the policy; accepted:"
                    " `prompt` alone"
                )
        self._running = self._engine.begin([EpisodeRequest(prompt, seed=0) for prompt in prompts])
        self._clean = [None] * count

    def _is_prompt(self, embeddings_BLD: torch.Tensor) -> bool:
        """Whether the denoiser was given these for its conditional rows."""
        text = self._recording.text
        assert text is not None
        return torch.equal(embeddings_BLD.to(text), text[-len(embeddings_BLD) :])

    def _decide(self, episodes: list[Episode], features_BF: torch.Tensor) -> None:
        """One denoiser call and, past the warm-up, one decision of each."""
        self._backbone.features_BF = features_BF
        self._engine.denoise(episodes)
        deciding = [episode for episode in episodes if episode.state == "deciding"]
        if not deciding:
            return
        mask_BA = self._engine.legal(deciding)
        choices = self._decider(deciding, self._observer.observe(deciding, mask_BA), mask_BA)
        for episode, action in zip(deciding, choices.tolist(), strict=True):
            self._engine.act(episode, action)

    def _clean_prediction(self, count: int, step: int) -> torch.Tensor:
        """x0 of the guided prediction; the step's noise level is the network's, whatever the scheduler."""
        seen = self._recording
        assert seen.prediction is not None
        assert seen.latents is not None
        prediction_BCHW = seen.prediction[-count:].float()
        if len(seen.prediction) > count:
            null_BCHW = seen.prediction[:count].float()
            prediction_BCHW = null_BCHW + self._engine.config.guidance_scale * (prediction_BCHW - null_BCHW)
        levels = [self._engine.schedule.points[step]] * count
        return clean_prediction(
            prediction_BCHW, seen.latents[-count:].float(), levels, self._backbone.prediction_type
        )

    @property
    def _backbone(self) -> ReplayedBackbone:
        backbone = self._engine.backbone
        assert isinstance(backbone, ReplayedBackbone)
        return backbone

    def _check_schedule(self, pipeline: Any) -> None:
        config, scheduler = self._engine.config, pipeline.scheduler
        if not isinstance(scheduler, SCHEDULERS[config.solver]) or scheduler.timesteps.tolist() != [
            point.timestep for point in self._engine.schedule.points
        ]:
            raise UserError(
                f"the pipeline takes {len(scheduler.timesteps)} steps of {type(scheduler).__name__};"
                f" accepted: the callback's own `scheduler` with num_inference_steps={config.num_steps}"
            )
        if pipeline.guidance_scale != config.guidance_scale or pipeline.guidance_rescale != 0.0:
            raise UserError(
                f"guidance_scale is {pipeline.guidance_scale}, guidance_rescale {pipeline.guidance_rescale};"
                f" accepted: {config.guidance_scale} and 0.0, as in training"
            )


def stop_callback(policy_folder: str | Path, pipeline: Any, *, verify: bool = True) -> StopCallback:
    """A `callback_on_step_end` that ends the pipeline's loop when the policy says stop.

    For policies that choose between `continue` and `stop` and observe `latent` or `timestep`. verify=False
    allows a pipeline with other weights. Raises UserError for another policy or pipeline; where it cannot be
    told which weights the pipeline has, it warns.
    """
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise UserError(f"pipeline is a {type(pipeline).__name__}; accepted: a StableDiffusionPipeline")
    policy = read_trained_policy(policy_folder)
    config = policy.engine
    if config.solver not in SOLVERS or config.eta > 0.0 or config.guidance_rule != "cfg":
        raise UserError(
            f"policy={policy_folder}: trained with engine.solver {config.solver!r}, eta {config.eta},"
            f" guidance_rule {config.guidance_rule!r}; a callback takes {' or '.join(SOLVERS)}, 0 and 'cfg',"
            " AdaptiveSampler any"
        )
    if not set(policy.engine.actions) <= set(ACTIONS) or policy.observation.policy not in VIEWS:
        raise UserError(
            f"policy={policy_folder}: chooses from {', '.join(policy.engine.actions)} and observes"
            f" {policy.observation.policy}; a callback can {' or '.join(ACTIONS)} and observe"
            f" {' or '.join(VIEWS)}, AdaptiveSampler does all"
        )
    identity = identity_of(pipeline)
    verify = verify and not warn_if_unknown(identity)
    engine, observer, network = policy.open(ReplayedBackbone(pipeline, identity), verify=verify)
    return StopCallback(pipeline, engine, observer, policy.decider(network, observer))
