"""What is seen at a decision: the policy's part, what only the critic may see, and the legal actions.

Always true here: an observation is one flat float32 vector, [policy part | critic-only part | mask]. The
policy part holds nothing that is not there at inference: its quality vector is the episode's own, filled
by the looks that were paid for.

Policy parts (the `seed` one has 1672 numbers with 768-dimensional embeddings):
    latent    mid-block features, pooled text, timestep embedding (128), quality (8), progress (4)
    seed      CLIP image and text embeddings, timestep embedding (128), quality (8)
    timestep  timestep embedding (128), progress (4)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import QUALITY_FEATURES
from actors.episode import Episode
from actors.errors import UserError

PolicyView = Literal["latent", "seed", "timestep"]
TIMESTEP_DIM = 128
QUALITY_OUTPUTS = ("clip_score", "aesthetic", "image_reward", "dino")
"""The scores that the quality vector is made of."""
EMBEDDINGS = ("clip_image", "clip_text")
"""What the `seed` view needs besides."""
PROGRESS_FEATURES = ("step_ratio", "nfe_ratio", "attempt_ratio", "looked_here")
RATIOS = ("step_ratio", "nfe_ratio", "attempt_ratio", "looked_here")
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

    def __init__(self, config: ObservationConfig, sizes: ObservationSizes, num_actions: int) -> None:
        quality_dim, progress_dim = len(QUALITY_FEATURES), len(PROGRESS_FEATURES)
        self.config = config
        self.sizes = sizes
        self.num_actions = num_actions
        self._policy_widths = {
            "latent": (sizes.feature_dim, sizes.text_dim, TIMESTEP_DIM, quality_dim, progress_dim),
            "seed": (sizes.embedding_dim, sizes.embedding_dim, TIMESTEP_DIM, quality_dim),
            "timestep": (TIMESTEP_DIM, progress_dim),
        }[config.policy]
        self.policy_dim = sum(self._policy_widths)
        self.critic_dim = quality_dim if config.critic_sees_quality else 0
        self.dim = self.policy_dim + self.critic_dim + num_actions

    @property
    def needs_embeddings(self) -> bool:
        """Whether every decision needs its preview scored, as the `seed` view does."""
        return self.config.policy == "seed"

    @property
    def look_outputs(self) -> tuple[str, ...]:
        """The scores that a look asks for."""
        return (*self.config.look_scores, *EMBEDDINGS) if self.needs_embeddings else self.config.look_scores

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
        blocks: list[tuple[int, tuple[str, ...]]] = []
        if self.critic_dim:
            blocks.append((self.policy_dim, QUALITY_FEATURES))
        if self.config.policy == "seed":
            blocks.append((self.policy_dim - len(QUALITY_FEATURES), QUALITY_FEATURES))
        else:
            progress = self.policy_dim - len(PROGRESS_FEATURES)
            blocks.append((progress, PROGRESS_FEATURES))
            if self.config.policy == "latent":
                quality = progress - len(QUALITY_FEATURES)
                blocks.append((quality, QUALITY_FEATURES))
                if self.critic_dim:
                    for statistics_D in (mean_D, std_D):
                        statistics_D[quality:progress] = statistics_D[self.policy_dim :]
        for start, names in blocks:
            for offset, name in enumerate(names):
                if name in RATIOS:
                    mean_D[start + offset], std_D[start + offset] = _RATIO_MEAN, _RATIO_STD
        start = 0
        for width in self._policy_widths:
            std_D[start : start + width] *= (width * len(self._policy_widths) / self.policy_dim) ** 0.5
            start += width
        return mean_D, std_D

    def _policy_parts(
        self, episodes: Sequence[Episode], embeddings: Mapping[str, NDArray[np.float32]] | None
    ) -> list[NDArray[np.float32]]:
        timesteps = timestep_embedding(np.array([episode.timestep for episode in episodes]))
        if self.config.policy == "timestep":
            return [timesteps, progress_features(episodes)]
        quality = np.stack([episode.quality for episode in episodes])
        if self.config.policy == "seed":
            assert embeddings is not None, "the seed view needs clip_image and clip_text"
            return [embeddings["clip_image"], embeddings["clip_text"], timesteps, quality]
        features = torch.stack([episode.features_F for episode in episodes]).numpy()
        pooled = np.stack([episode.pooled_D for episode in episodes])
        return [features, pooled, timesteps, quality, progress_features(episodes)]


def progress_features(episodes: Sequence[Episode]) -> NDArray[np.float32]:
    """[B, 4]: how far schedule, budget and attempts are used up, and whether this x0 was looked at."""
    rows = [
        (
            episode.progress,
            episode.nfe / episode.max_nfe,
            episode.attempt / episode.config.max_attempts,
            float(episode.looked_here),
        )
        for episode in episodes
    ]
    return np.array(rows, dtype=np.float32).reshape(len(episodes), len(PROGRESS_FEATURES))


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
