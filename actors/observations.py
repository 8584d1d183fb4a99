"""What is seen at a decision: the policy's part, what only the critic may see, and the legal actions.

Always true here: an observation is one flat float32 vector, [policy part | critic-only part | mask]. The
policy part holds nothing that is not there at inference: its quality vector is the episode's own, filled
by the looks that were paid for.

Policy parts (the `seed` one has 1672 numbers with 768-dimensional embeddings):
    latent    mid-block features, pooled text, timestep embedding (128), quality (8), progress (4 or more)
    seed      CLIP image and text embeddings, timestep embedding (128), quality (8)
    timestep  timestep embedding (128), progress (4 or more)
Progress has one more number each where the actions hold `reuse` and `guidance-w`: a state that an action made
is seen. For ablations `seed` can do without CLIP, `seed` and `latent` without quality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import QUALITY_FEATURES
from actors.episode import Episode, guidance_scales
from actors.errors import UserError

PolicyView = Literal["latent", "seed", "timestep"]
TIMESTEP_DIM = 128
QUALITY_OUTPUTS = ("clip_score", "aesthetic", "image_reward", "dino")
"""The scores that the quality vector is made of."""
EMBEDDINGS = ("clip_image", "clip_text")
"""What the `seed` view needs besides."""
PROGRESS_FEATURES = ("step_ratio", "nfe_ratio", "attempt_ratio", "looked_here")
BLOCKS: dict[PolicyView, tuple[str, ...]] = {
    "latent": ("features", "pooled", "timestep", "quality", "progress"),
    "seed": ("clip_image", "clip_text", "timestep", "quality"),
    "timestep": ("timestep", "progress"),
}
RATIOS = (*PROGRESS_FEATURES, "extrapolated", "guidance_ratio")
"""Features that lie in [0, 1] by construction."""
_RATIO_MEAN, _RATIO_STD = 0.5, 12**-0.5


@dataclass(frozen=True)
class ObservationConfig:
    """Options of what is observed."""

    policy: PolicyView = "latent"
    critic_sees_quality: bool = True
    """Whether the critic is given the quality of every preview, looked at or not."""
    look_scores: tuple[str, ...] = QUALITY_OUTPUTS
    """What a look has scored; the rest of the quality vector stays unknown. Fewer make it cheaper."""
    clip: bool = True
    """Whether the `seed` view has the CLIP embeddings."""
    quality: bool = True
    """Whether the `seed` and the `latent` view have the quality vector."""

    def __post_init__(self) -> None:
        accepted = get_args(PolicyView)
        if self.policy not in accepted:
            raise UserError(f"observation.policy is {self.policy!r}; accepted: {', '.join(accepted)}")
        if "image_reward" not in self.look_scores or not set(self.look_scores) <= set(QUALITY_OUTPUTS):
            raise UserError(
                f"observation.look_scores is {list(self.look_scores)}; accepted: image_reward, and any of"
                f" {', '.join(name for name in QUALITY_OUTPUTS if name != 'image_reward')}"
            )


@dataclass(frozen=True)
class ObservationSizes:
    """The widths that backbone and scorer bring along."""

    feature_dim: int
    text_dim: int
    embedding_dim: int = 768
    """Of the scorer's CLIP embeddings; only the `seed` view has them."""


class Observer:
    """Builds observations, and takes them apart again.

    policy_dim and critic_dim are the widths of the policy part and of the critic-only part, so that
    dim = policy_dim + critic_dim + num_actions.
    """

    def __init__(
        self,
        config: ObservationConfig,
        sizes: ObservationSizes,
        actions: Sequence[str],
        progress: Sequence[str] | None = None,
    ) -> None:
        """`progress`: names of the progress features, where they are not those of `actions`."""
        self.config = config
        self.sizes = sizes
        self.actions = tuple(actions)
        self.num_actions = len(self.actions)
        self.progress_names = tuple(progress_names(self.actions) if progress is None else progress)
        self._widths = _block_widths(config, sizes, len(self.progress_names))
        self.policy_dim = sum(self._widths.values())
        self.critic_dim = len(QUALITY_FEATURES) if config.critic_sees_quality else 0
        self.dim = self.policy_dim + self.critic_dim + self.num_actions

    def for_actions(self, actions: Sequence[str]) -> Observer:
        """The same view of other actions: only the mask differs."""
        return Observer(self.config, self.sizes, actions, self.progress_names)

    @property
    def needs_embeddings(self) -> bool:
        """Whether the policy part holds the CLIP embeddings of the preview."""
        return "clip_image" in self._widths

    @property
    def scores_every_decision(self) -> bool:
        """Whether every decision needs its preview scored, as the `seed` view does."""
        return self.config.policy == "seed" and (self.config.clip or self.config.quality)

    @property
    def look_outputs(self) -> tuple[str, ...]:
        """The scores that a look asks for."""
        return (*self.config.look_scores, *(EMBEDDINGS if self.needs_embeddings else ()))

    def observe(
        self,
        episodes: Sequence[Episode],
        mask_BA: NDArray[np.bool_],
        critic: NDArray[np.float32] | None = None,
        embeddings: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """[B, dim]. `critic` is [B, 8], a quality vector each (zeros if None).

        `embeddings` holds `clip_image` and `clip_text`, [B, embedding_dim] each, for the `seed` view.
        """
        parts = self._policy_parts(episodes, embeddings)
        if self.critic_dim:
            nothing = np.zeros((len(episodes), self.critic_dim), dtype=np.float32)
            parts.append(critic if critic is not None else nothing)
        parts.append(mask_BA.astype(np.float32))
        observations_BD = np.concatenate(parts, axis=1, dtype=np.float32)
        assert observations_BD.shape == (len(episodes), self.dim), (observations_BD.shape, self.dim)
        return observations_BD

    def split(self, observations_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Policy's input [B, policy_dim], critic's [B, policy_dim + critic_dim], bool mask [B, A]."""
        critic_end = self.policy_dim + self.critic_dim
        return (
            observations_BD[..., : self.policy_dim],
            observations_BD[..., :critic_end],
            observations_BD[..., critic_end:] > 0.5,
        )

    def complete_statistics(
        self, mean_D: NDArray[np.float32], std_D: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Normalisation of the critic's whole input, where measured trajectories cannot know it.

        They were not looked at and began only once. So the policy's quality features, all zero there,
        take the critic's statistics, which are of every preview, and ratios those of a uniform number.
        Then each block of the policy part is widened or narrowed so that all blocks start with the same
        say in the first layer: else the one score that a look paid for is lost among hundreds of features.
        """
        mean_D, std_D = mean_D.copy(), std_D.copy()
        starts = dict(zip(self._widths, accumulate(self._widths.values(), initial=0), strict=False))
        blocks: list[tuple[int, tuple[str, ...]]] = []
        if self.critic_dim:
            blocks.append((self.policy_dim, QUALITY_FEATURES))
        if "progress" in starts:
            blocks.append((starts["progress"], self.progress_names))
        if "quality" in starts:
            quality = starts["quality"]
            blocks.append((quality, QUALITY_FEATURES))
            if self.critic_dim and not self.scores_every_decision:
                for statistics_D in (mean_D, std_D):
                    statistics_D[quality : quality + len(QUALITY_FEATURES)] = statistics_D[self.policy_dim :]
        for start, names in blocks:
            for offset, name in enumerate(names):
                if name in RATIOS:
                    mean_D[start + offset], std_D[start + offset] = _RATIO_MEAN, _RATIO_STD
        widths = self._widths.values()
        for start, width in zip(accumulate(widths, initial=0), widths, strict=False):
            std_D[start : start + width] *= (width * len(widths) / self.policy_dim) ** 0.5
        return mean_D, std_D

    def _policy_parts(
        self, episodes: Sequence[Episode], embeddings: Mapping[str, NDArray[np.float32]] | None
    ) -> list[NDArray[np.float32]]:
        assert embeddings is not None or not self.needs_embeddings, (
            "the seed view needs clip_image and clip_text"
        )
        return [self._block(name, episodes, embeddings or {}) for name in self._widths]

    def _block(
        self, name: str, episodes: Sequence[Episode], embeddings: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        if name in EMBEDDINGS:
            return embeddings[name]
        if name == "features":
            return torch.stack([episode.features_F for episode in episodes]).numpy()
        if name == "pooled":
            return np.stack([episode.pooled_D for episode in episodes])
        if name == "quality":
            return np.stack([episode.quality for episode in episodes])
        if name == "timestep":
            return timestep_embedding(np.array([episode.timestep for episode in episodes]))
        features = progress_features(episodes, guidance_scales(self.actions))
        return np.stack([features[feature] for feature in self.progress_names], axis=1)


def _block_widths(config: ObservationConfig, sizes: ObservationSizes, progress: int) -> dict[str, int]:
    """Width of each block of the policy part, in order."""
    widths = {
        "features": sizes.feature_dim,
        "pooled": sizes.text_dim,
        "clip_image": sizes.embedding_dim,
        "clip_text": sizes.embedding_dim,
        "timestep": TIMESTEP_DIM,
        "quality": len(QUALITY_FEATURES),
        "progress": progress,
    }
    left_out = set() if config.quality else {"quality"}
    if not config.clip:
        left_out |= set(EMBEDDINGS)
    return {name: widths[name] for name in BLOCKS[config.policy] if name not in left_out}


def progress_names(actions: Sequence[str]) -> tuple[str, ...]:
    """The progress features where these are the actions."""
    made = [("extrapolated", "reuse" in actions), ("guidance_ratio", bool(guidance_scales(actions)))]
    return (*PROGRESS_FEATURES, *(name for name, there in made if there))


def progress_features(
    episodes: Sequence[Episode], scales: Sequence[float] = ()
) -> dict[str, NDArray[np.float32]]:
    """How far schedule, budget and attempts are used up, and the state of each clean prediction; [B] each.

    guidance_ratio is the present scale as a share of the highest among `scales` and the configuration's.
    """
    features = {
        "step_ratio": [episode.progress for episode in episodes],
        "nfe_ratio": [episode.nfe / episode.max_nfe for episode in episodes],
        "attempt_ratio": [episode.attempt / episode.config.max_attempts for episode in episodes],
        "looked_here": [float(episode.looked_here) for episode in episodes],
        "extrapolated": [float(episode.extrapolated) for episode in episodes],
        "guidance_ratio": [
            episode.guidance_scale / max(*scales, episode.config.guidance_scale) if scales else 1.0
            for episode in episodes
        ],
    }
    return {name: np.array(values, dtype=np.float32) for name, values in features.items()}


def timestep_embedding(timesteps_B: NDArray[np.float64]) -> NDArray[np.float32]:
    """[B, 128]: cosines, then sines, of geometric frequencies, as Stable Diffusion's own embedding."""
    half = TIMESTEP_DIM // 2
    angles = timesteps_B[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def quality_vector(
    scores: Mapping[str, NDArray[np.float32]],
    previous: Mapping[str, NDArray[np.float32]],
    *,
    step_ratio: float,
    nfe_ratio: float,
    best_image_reward: float,
) -> NDArray[np.float32]:
    """[8] in the order of QUALITY_FEATURES, from one preview's scores and those of the one before it.

    `previous` is empty for the first preview; then nothing has changed yet, and the aesthetic delta and
    the DINO similarity are 0. So is whatever the scorer does not give.
    """
    aesthetic_delta = dino_similarity = 0.0
    if "aesthetic" in scores and "aesthetic" in previous:
        aesthetic_delta = float(scores["aesthetic"] - previous["aesthetic"])
    if "dino" in scores and "dino" in previous:
        dino_similarity = float(np.dot(scores["dino"], previous["dino"]))
    features = {
        "clip_score": float(scores.get("clip_score", np.float32(0.0))),
        "aesthetic_delta": aesthetic_delta,
        "image_reward": float(scores["image_reward"]),
        "dino_similarity": dino_similarity,
        "step_ratio": step_ratio,
        "nfe_ratio": nfe_ratio,
        "best_image_reward": best_image_reward,
        "looked": 1.0,
    }
    return np.array([features[name] for name in QUALITY_FEATURES], dtype=np.float32)
