"""A trained policy on a diffusers pipeline: prompts in, images and the decisions behind them out.

    pipeline = StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    sampler = AdaptiveSampler.from_pretrained("runs/run/policy")
    image = sampler(pipeline, "a red fox", seeds=0).images[0]

Always true here: the images are those of the engine that the policy was trained with, its solver, schedule
and guidance included (the pipeline's own scheduler is not used); an image depends on its prompt and seed
only, not on its neighbours; the pipeline keeps working as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from actors.backbones.from_pipeline import backbone_of, warn_if_unknown
from actors.contracts import EpisodeRequest, EpisodeResult, Images, QualityScorer
from actors.errors import UserError
from actors.observations import Observer
from actors.policy_folder import TrainedPolicy, read_trained_policy
from actors.rollout import rollout

OutputType = Literal["pil", "np", "latent"]


@dataclass(frozen=True)
class SamplerOutput:
    """What diffusers' pipelines return, and how it came about, in the order of the prompts.

    images: PIL images; with "np" one float32 array [B, H, W, 3] from 0 to 1; with "latent" one float32
    tensor [B, C, H, W], as the pipeline's `vae` takes it once divided by its scaling factor. episodes: what
    was decided, and the cost. nsfw_content_detected: the verdicts of the pipeline's safety checker, whose
    images are black; None without one.
    """

    images: list[Image.Image] | NDArray[np.float32] | torch.Tensor
    episodes: tuple[EpisodeResult, ...]
    nsfw_content_detected: list[bool] | None


class AdaptiveSampler:
    """A policy that decides, image by image, what each is worth."""

    def __init__(
        self, policy: TrainedPolicy, scorer: QualityScorer | None = None, *, verify: bool = True
    ) -> None:
        needs_scorer = "look" in policy.engine.actions or policy.observation.policy == "seed"
        if needs_scorer and scorer is None:
            raise UserError(
                f"policy={policy.folder}: it looks at previews, but scorer is None; accepted: what scored"
                " them in training, for the embedded world actors.sampler.shapes_scorer()"
            )
        self.policy = policy
        self._scorer = scorer
        self._verify = verify

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, scorer: QualityScorer | None = None, verify: bool = True
    ) -> AdaptiveSampler:
        """The policy that training left in a folder (`runs/NAME/policy`).

        scorer: scores the previews that the policy looks at; needed by policies that can look. verify=False
        allows a backbone with other weights, say a fine-tuned one. Raises UserError.
        """
        return cls(read_trained_policy(folder), scorer, verify=verify)

    def __call__(
        self,
        pipeline: Any,
        prompt: str | Sequence[str],
        *,
        seeds: int | Sequence[int] | None = None,
        max_nfe: int | None = None,
        output_type: OutputType = "pil",
        slots: int | None = None,
    ) -> SamplerOutput:
        """One image a prompt.

        seeds: one a prompt, each gives the image that a CPU generator with that seed gives in diffusers; None
        draws them from torch's global generator, and `episodes` say which. max_nfe: denoiser calls that an
        image may cost; None: as the policy was trained. slots: images that share a denoiser call; None: all.
        Raises UserError for a pipeline that the policy was not trained on; where that cannot be told, it
        warns.
        """
        if output_type not in get_args(OutputType):
            raise UserError(f"output_type is {output_type!r}; accepted: {', '.join(get_args(OutputType))}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("prompt is an empty list; accepted: a text, or a list of at least one")
        backbone = backbone_of(pipeline, self.policy.backbone)
        verify = self._verify and not warn_if_unknown(backbone.identity)
        engine, observer, network = self.policy.open(backbone, verify=verify)
        episodes = rollout(
            engine,
            self.policy.decider(network, observer),
            observer,
            [
                EpisodeRequest(text, seed, max_nfe=max_nfe)
                for text, seed in zip(prompts, _seeds(seeds, len(prompts)), strict=True)
            ],
            slots=slots if slots is not None else len(prompts),
            scorer=self._scores_of(observer),
        )
        latents_BCHW = torch.stack([episode.latents_CHW for episode in episodes])
        if output_type == "latent":
            return SamplerOutput(latents_BCHW, tuple(episodes), None)
        parts = torch.split(latents_BCHW, slots if slots is not None else len(prompts))
        images_BHWC = np.concatenate([backbone.decode(part) for part in parts])
        flagged = _check_safety(pipeline, images_BHWC)
        if output_type == "np":
            return SamplerOutput(images_BHWC.astype(np.float32) / 255.0, tuple(episodes), flagged)
        return SamplerOutput([Image.fromarray(image) for image in images_BHWC], tuple(episodes), flagged)

    def _scores_of(self, observer: Observer) -> QualityScorer | None:
        """The scorer, but only what a look gave in training: the policy does not know what others mean."""
        scorer = self._scorer
        if scorer is None:
            return None

        def score(images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
            scores = scorer(images, prompts)
            if missing := [name for name in observer.look_outputs if name not in scores]:
                raise UserError(
                    f"scorer gives {', '.join(scores)}, without {missing[0]}; accepted: one that gives"
                    f" {', '.join(observer.look_outputs)}"
                )
            return {name: scores[name] for name in observer.look_outputs}

        return score


def shapes_scorer(*outputs: str, device: str = "cpu") -> QualityScorer:
    """The embedded world's reward models as a scorer, for policies trained with them.

    outputs: the scores wanted, by default what the embedded world's policies look at. `latent` and `seed`
    policies with other look_scores name them here; what nobody asked for is not computed.
    """
    from rewards_service.local import LocalClient
    from rewards_service.world import load_scorers
    from shapes import weights  # only needed by those who name the embedded world

    client = LocalClient(load_scorers(weights.PATH, device))

    def score(images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return client.score(images, prompts, outputs or ("image_reward",))

    return score


def _seeds(seeds: int | Sequence[int] | None, count: int) -> list[int]:
    if seeds is None:
        return [int(seed) for seed in torch.randint(2**62, (count,))]
    listed = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if len(listed) != count or not all(0 <= seed < 2**63 for seed in listed):
        raise UserError(
            f"seeds is {seeds}; accepted: {count}, one a prompt, each a whole number from 0 to 2^63 - 1"
        )
    return listed


def _check_safety(pipeline: Any, images_BHWC: Images) -> list[bool] | None:
    """Blacken what the pipeline's safety checker objects to, as the pipeline does; its verdicts."""
    if getattr(pipeline, "safety_checker", None) is None:
        return None
    images = images_BHWC.astype(np.float32) / 255.0
    _, flagged = pipeline.run_safety_checker(images, pipeline.device, pipeline.dtype)
    images_BHWC[np.asarray(flagged, dtype=bool)] = 0
    return [bool(flag) for flag in flagged]
