"""The engine: many episodes at different timesteps share one denoiser call.

Always true here: an episode's outcome depends on its prompt, its seed and the configuration, never on
its neighbours in a batch; every denoiser call is counted (one NFE for each episode in it), remembered or
made; a batched call waits for the device once, and once more where calls are remembered; a NaN is an error
with prompt and step, never a value.

    episodes = engine.begin(requests)
    engine.denoise(episodes)        # until they are "deciding"
    engine.act(episode, index)      # "denoising" again, "looking" or "finished"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from actors.actions import Action, Advance, Guide, Refine, Reuse, legal_row, make_actions
from actors.conditioning import conditioning_row, stack_conditioning
from actors.contracts import Backbone, DecisionRecord, EpisodeRequest, Images, ScoreRow
from actors.episode import EngineConfig, Episode
from actors.errors import UserError
from actors.memo import Call, Memo, call_keys
from actors.observations import quality_vector
from actors.regions import make_region
from actors.schedule import NoiseLevel, make_schedule
from actors.solvers import (
    clean_prediction,
    consistency_prediction,
    ddim_noise,
    solver_step,
    step_ratio,
)

__all__ = ["Engine", "EngineConfig", "Episode"]


class Engine:
    """Denoises episodes with a frozen backbone, as actions say.

    memo: calls that were made before are not made again; engines of one backbone may share it.
    Raises UserError when the configuration does not fit the backbone.
    """

    def __init__(self, backbone: Backbone, config: EngineConfig, memo: Memo[Call] | None = None) -> None:
        self.backbone = backbone
        self.config = config
        self.memo = memo
        self.actions = make_actions(config.actions)
        self.action_names = tuple(action.name for action in self.actions)
        self.num_actions = len(self.actions)
        _check_backbone(backbone, config, self.actions)
        self.schedule = make_schedule(
            config.num_steps,
            config.solver,
            backbone.alphas_cumprod.double().cpu().numpy(),
            spacing=config.timestep_spacing,
            flow_shift=backbone.flow_shift if config.flow_shift is None else config.flow_shift,
            timesteps=config.timesteps,
        )
        refines = any(isinstance(action, Refine) for action in self.actions)
        self.region = make_region(config, backbone) if refines else None
        self._records_attention = self.region is not None and self.region.needs_attention
        self._renoises_unguided = config.guidance_rule == "cfg++"
        self._adds_noise = config.solver == "lcm" or config.eta > 0.0

    @torch.inference_mode()
    def begin(self, requests: Sequence[EpisodeRequest]) -> list[Episode]:
        """New episodes; each one's noise is what diffusers draws from a CPU generator with that seed."""
        if not requests:
            return []
        conditioning = self.backbone.encode_prompts([request.prompt for request in requests])
        if self.config.guidance_rule == "none":
            conditioning = replace(conditioning, null_BLD=None)
        pooled_BD = conditioning.pooled_BD.float().cpu().numpy()
        shape = self.backbone.latent_shape
        episodes = []
        for row, request in enumerate(requests):
            if request.max_nfe is not None and request.max_nfe < 1:
                raise UserError(f"max_nfe is {request.max_nfe}; accepted: a whole number from 1")
            generator = torch.Generator().manual_seed(request.seed)
            latents_CHW = torch.randn(shape, generator=generator).to(self.backbone.device)
            episode = Episode(
                request=request,
                config=self.config,
                schedule=self.schedule,
                conditioning=conditioning_row(conditioning, row),
                pooled_D=pooled_BD[row],
                generator=generator,
                latents_CHW=latents_CHW,
                clean_CHW=torch.zeros_like(latents_CHW),
                features_F=torch.zeros(self.backbone.feature_dim),
                level=self.schedule.points[0],
                guidance_scale=self.config.guidance_scale,
                region=self.region,
            )
            episodes.append(episode)
        return episodes

    @torch.inference_mode()
    def denoise(self, episodes: Sequence[Episode]) -> None:
        """One batched denoiser call for every given episode that is "denoising", wherever it stands."""
        batch = [episode for episode in episodes if episode.state == "denoising"]
        if not batch:
            return
        self._advance(batch)
        for episode, call in zip(batch, self._calls(batch), strict=True):
            episode.nfe += 1
            episode.network_evals += 1 if episode.conditioning.null_BLD is None else 2
            if episode.refinement is not None:
                _continue_refinement(episode, call.clean_CHW, call.null_clean_CHW)
                continue
            episode.clean_CHW, episode.null_clean_CHW = call.clean_CHW, call.null_clean_CHW
            episode.extrapolated = False
            episode.features_F, episode.attention_HW = call.features_F, call.attention_HW
            self._arrive(episode)

    def _calls(self, batch: Sequence[Episode]) -> list[Call]:
        """The denoiser's answer for each episode where it stands, remembered if it can be."""
        attention_B = [self._records_attention and self._may_refine(episode) for episode in batch]
        if self.memo is None:
            return self._call(batch, attention=any(attention_B))
        keys = call_keys(batch, attention_B)
        calls = self.memo.recall(keys)
        missing = [row for row, call in enumerate(calls) if call is None]
        if missing:
            needed = any(attention_B[row] for row in missing)
            made = self._call([batch[row] for row in missing], attention=needed)
            self.memo.keep([keys[row] for row in missing], [call.detached() for call in made])
            for row, call in zip(missing, made, strict=True):
                calls[row] = call
        return [call for call in calls if call is not None]

    def _call(self, batch: Sequence[Episode], *, attention: bool) -> list[Call]:
        """One call of the backbone for all of them."""
        latents_BCHW = torch.stack([episode.latents_CHW for episode in batch])
        levels = [episode.level for episode in batch]
        device = self.backbone.device
        denoised = self.backbone.denoise(
            latents_BCHW,
            torch.tensor([level.timestep for level in levels], device=device),
            stack_conditioning([episode.conditioning for episode in batch]),
            torch.tensor([episode.guidance_scale for episode in batch], device=device),
            attention=attention,
        )
        clean_BCHW = self._clean(denoised.prediction_BCHW, latents_BCHW, levels)
        null_clean_BCHW = None
        if self._renoises_unguided and denoised.null_prediction_BCHW is not None:
            null_clean_BCHW = self._clean(denoised.null_prediction_BCHW, latents_BCHW, levels)
        features_BF = _to_host(clean_BCHW, denoised.features_BF, batch)
        attention_BHW = None
        if denoised.attention_BLHW is not None:
            attention_BHW = denoised.attention_BLHW.amax(dim=1)
        return [
            Call(
                clean_BCHW[row],
                null_clean_BCHW[row] if null_clean_BCHW is not None else None,
                features_BF[row],
                attention_BHW[row] if attention_BHW is not None else None,
            )
            for row in range(len(batch))
        ]

    def legal(self, episodes: Sequence[Episode]) -> NDArray[np.bool_]:
        """[B, A]: the actions that each deciding episode may take; at least one in each row."""
        return np.array([legal_row(self.actions, episode) for episode in episodes], dtype=np.bool_).reshape(
            len(episodes), self.num_actions
        )

    @torch.inference_mode()
    def act(self, episode: Episode, action_index: int) -> None:
        """Take an action at a decision; it must be legal."""
        assert episode.state == "deciding", f"{episode.request} is {episode.state}, not deciding"
        action = self.actions[action_index]
        assert legal_row(self.actions, episode)[action_index], f"{action.name} is illegal: {episode.request}"
        record = DecisionRecord(
            action=action.name,
            step_index=episode.step_index,
            timestep=episode.timestep,
            nfe=episode.nfe,
            attempt=episode.attempt,
            image_reward=episode.looked_score,
        )
        episode.decisions.append(record)
        action.apply(episode)
        if isinstance(action, Reuse):
            self._extrapolate(episode)
        elif isinstance(action, Guide):
            self._decide_or_finish(episode)

    def preview(self, episodes: Sequence[Episode]) -> Images:
        """Small images of the present clean predictions, B x H x W x 3."""
        return self.backbone.preview(torch.stack([episode.clean_CHW for episode in episodes]))

    def receive_look(self, episode: Episode, scores: ScoreRow) -> None:
        """Enter one preview's scores (a row of what the scorer gave); the look is counted here.

        The episode is deciding again, or finished where stop was waiting for this.

        `image_reward` must be among them; whatever else the scorer does not give stays zero. An episode
        that was not asked to look may be given scores too (the `seed` observation needs them always).
        """
        assert episode.state in ("looking", "deciding"), f"{episode.request} is {episode.state}"
        row = {name: np.asarray(values, dtype=np.float32) for name, values in scores.items()}
        for name, values in row.items():
            if not np.isfinite(values).all():
                raise FloatingPointError(f"{name} is not finite: {_where(episode)}")
        if "image_reward" not in row:
            raise KeyError(f"image_reward is missing from the scores: {_where(episode)}")
        image_reward, kept = float(row["image_reward"]), episode.best_kept_score
        episode.quality = quality_vector(
            row,
            episode.last_look,
            step_ratio=episode.progress,
            nfe_ratio=episode.nfe / episode.max_nfe,
            best_image_reward=image_reward if kept is None else max(image_reward, kept),
        )
        episode.last_look = row
        episode.looked_here = True
        episode.looks += 1
        if episode.stopping:
            episode.finish()
        else:
            self._decide_or_finish(episode)

    def _advance(self, batch: Sequence[Episode]) -> None:
        """Take the solver step of all episodes that aim at a schedule point, as one batch."""
        moving = [episode for episode in batch if episode.target_index is not None]
        if not moving:
            return
        sources = [episode.level for episode in moving]
        targets = [self.schedule.points[episode.target_index or 0] for episode in moving]
        previous: list[NoiseLevel | None] | None = None
        previous_clean_BCHW = null_clean_BCHW = noise_BCHW = noise_scales = None
        if self.config.solver == "dpmpp":
            previous = [episode.history[1] if episode.history else None for episode in moving]
            previous_clean_BCHW = torch.stack(
                [episode.history[0] if episode.history else episode.clean_CHW for episode in moving]
            )
        if self._renoises_unguided:
            null_clean_BCHW = torch.stack(
                [episode.null_clean_CHW for episode in moving if episode.null_clean_CHW is not None]
            )
        if self._adds_noise:
            noise_scales = [
                target.sigma if self.config.solver == "lcm" else ddim_noise(source, target, self.config.eta)
                for source, target in zip(sources, targets, strict=True)
            ]
            noise_BCHW = torch.stack([episode.fresh_noise() for episode in moving])
        latents_BCHW = solver_step(
            torch.stack([episode.latents_CHW for episode in moving]),
            torch.stack([episode.clean_CHW for episode in moving]),
            sources,
            targets,
            previous_clean_BCHW=previous_clean_BCHW,
            previous=previous,
            null_clean_BCHW=null_clean_BCHW,
            noise_BCHW=noise_BCHW,
            noise_scales=noise_scales,
        )
        for row, episode in enumerate(moving):
            episode.history = (episode.clean_CHW, episode.level)
            episode.latents_CHW, episode.level = latents_BCHW[row], targets[row]
            episode.step_index, episode.target_index = episode.target_index or 0, None

    def _extrapolate(self, episode: Episode) -> None:
        """One solver step; the clean prediction goes on as it did before, linearly in log(alpha / sigma)."""
        before, clean_CHW = episode.history, episode.clean_CHW
        assert before is not None, f"nothing to extrapolate from: {_where(episode)}"
        self._advance([episode])
        assert episode.history is not None
        reach = step_ratio(before[1], episode.history[1], episode.level)
        change_CHW = reach * (clean_CHW - before[0])
        episode.clean_CHW = clean_CHW + change_CHW
        if episode.null_clean_CHW is not None:
            episode.null_clean_CHW = episode.null_clean_CHW + change_CHW
        episode.extrapolated = True
        self._arrive(episode)

    def _clean(
        self, prediction_BCHW: torch.Tensor, latents_BCHW: torch.Tensor, levels: Sequence[NoiseLevel]
    ) -> torch.Tensor:
        clean_BCHW = clean_prediction(prediction_BCHW, latents_BCHW, levels, self.backbone.prediction_type)
        if self.config.solver == "lcm":
            return consistency_prediction(clean_BCHW, latents_BCHW, levels)
        return clean_BCHW

    def _arrive(self, episode: Episode) -> None:
        """After a call at a schedule point: a forced step, a decision, or the end."""
        episode.looked_here = episode.guidance_chosen = False
        step = Advance()
        forced = episode.attempt == 1 and episode.step_index < self.config.warmup_steps
        if forced and step.possible(episode) and episode.affords(1):
            step.apply(episode)
        else:
            self._decide_or_finish(episode)

    def _decide_or_finish(self, episode: Episode) -> None:
        """An episode that nothing is left to be done with ends by itself."""
        if any(legal_row(self.actions, episode)):
            episode.state = "deciding"
        else:
            episode.finish()

    def _may_refine(self, episode: Episode) -> bool:
        return episode.refinement is None and (
            episode.attempt > 1 or episode.step_index >= self.config.warmup_steps
        )


def _check_backbone(backbone: Backbone, config: EngineConfig, actions: Sequence[Action]) -> None:
    """UserError for options that this backbone cannot follow."""
    flow = backbone.prediction_type == "flow"
    accepted = ("dpmpp", "flow_euler") if flow else ("ddim", "dpmpp", "lcm")
    if config.solver not in accepted:
        raise UserError(
            f"engine.solver is {config.solver!r}; accepted with this backbone: {' or '.join(accepted)}"
        )
    if config.guidance_rule == "cfg++" and (flow or not backbone.classifier_free):
        raise UserError("engine.guidance_rule is 'cfg++'; accepted with this backbone: cfg or none")
    for action in actions:
        if isinstance(action, Guide):
            action.check(config)


def _continue_refinement(
    episode: Episode, clean_CHW: torch.Tensor, null_clean_CHW: torch.Tensor | None
) -> None:
    """On to the next inner call, or with the last one's prediction to the next schedule point."""
    assert episode.refinement is not None
    latents_CHW = episode.refinement.step(episode.latents_CHW, clean_CHW, null_clean_CHW)
    if latents_CHW is not None:
        episode.latents_CHW, episode.level = latents_CHW, episode.refinement.level
        return
    episode.step_index += 1
    episode.level = episode.schedule.points[episode.step_index]
    episode.latents_CHW = episode.refinement.resume(clean_CHW, episode.level)
    episode.refinement = None


def _to_host(clean_BCHW: torch.Tensor, features_BF: torch.Tensor, batch: Sequence[Episode]) -> torch.Tensor:
    """The features on the CPU. The check for NaN travels with them: one wait for the device in all."""
    finite_B = clean_BCHW.flatten(1).isfinite().all(dim=1, keepdim=True)
    host_BF = torch.cat([features_BF.float(), finite_B.float()], dim=1).cpu()
    for row in torch.nonzero(~(host_BF.isfinite().all(dim=1) & (host_BF[:, -1] == 1.0))).flatten().tolist():
        raise FloatingPointError(f"the denoiser gave a value that is not finite: {_where(batch[row])}")
    return host_BF[:, :-1]


def _where(episode: Episode) -> str:
    request = episode.request
    return f"prompt {request.prompt!r}, seed {request.seed}, step {episode.step_index}"
