"""What the parts of the denoising engine promise each other; read this file first.

Always true here: no Ray, no RLlib; tensors are torch and live on the backbone's device, images are
uint8 numpy in B x H x W x 3, and an episode's randomness comes from its own seed and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from actors.engine import Episode

Images = NDArray[np.uint8]
#: One preview's scores: scalars and embeddings.
ScoreRow = Mapping[str, NDArray[np.float32] | np.float32]
PredictionType = Literal["epsilon", "v_prediction", "flow"]

#: The quality vector an observation may hold, in this order (see ORIGINAL formulation, "State").
QUALITY_FEATURES = (
    "clip_score",
    "aesthetic_delta",
    "image_reward",
    "dino_similarity",
    "step_ratio",
    "nfe_ratio",
    "best_image_reward",
    "looked",
)


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One image to make: a prompt and the seed that fixes every random number of its episode."""

    prompt: str
    seed: int
    tier: str | None = None
    max_nfe: int | None = None
    category: str | None = None
    """What the prompt is about, where its source says so; for evaluations."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Embeddings of B prompts.

    text_BLD: conditional token embeddings; null_BLD: those of the empty prompt, or None where the network
    is asked once, without classifier-free guidance; pooled_BD: one vector a prompt; token_mask_BL: True at
    tokens that belong to the prompt's words (not at begin, end or padding); extras: what a backbone needs
    besides (SDXL's time ids and the empty prompt's pooled vector), each with B rows.
    """

    text_BLD: torch.Tensor
    null_BLD: torch.Tensor | None
    pooled_BD: torch.Tensor
    token_mask_BL: torch.Tensor
    extras: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Denoised:
    """One denoiser call: the guided prediction, pooled mid-block features, attention if asked for.

    attention_BLHW holds the mean attention of the image to the text over heads and layers, one map a token;
    null_prediction_BCHW what is predicted for the empty prompt, where the network was asked for that too.
    """

    prediction_BCHW: torch.Tensor
    features_BF: torch.Tensor
    attention_BLHW: torch.Tensor | None
    null_prediction_BCHW: torch.Tensor | None = None


class Backbone(Protocol):
    """A frozen text-to-image model, as the engine sees it."""

    latent_shape: tuple[int, int, int]
    prediction_type: PredictionType
    alphas_cumprod: torch.Tensor
    """float64, one entry a training timestep; for flow models an empty tensor."""
    feature_dim: int
    text_dim: int
    classifier_free: bool
    """Whether the empty prompt guides it. Else it takes the guidance scale as an input, or ignores it."""
    flow_shift: float
    """The timestep shift of its own scheduler at its resolution; 1 for models that are no flow."""
    device: torch.device
    identity: str
    """What the registry stores so that a policy is never run on another backbone unknowingly."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One row a prompt; never empty. With null_BLD exactly where the backbone is classifier-free."""
        ...

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        """One network call for all rows, each at its own timestep; float32 out.

        Where null_BLD is None, the network is asked once a row and the scale does not count, unless the
        network takes it as an input.
        """
        ...

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """Clean latents as images at full size."""
        ...

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """Clean latents as small images."""
        ...


class QualityScorer(Protocol):
    """Scores previews for `look`: images and prompts in, name -> float32 array [B] or [B, D] out."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Scores by name."""
        ...


class Decider(Protocol):
    """Chooses an action index for each episode that awaits a decision.

    observations_BD is float32 as `Observer.observe` made it, mask_BA is True where an action is legal.
    A learned policy and every fixed baseline are Deciders, so that they run through the same engine.
    """

    def __call__(
        self,
        episodes: Sequence[Episode],
        observations_BD: NDArray[np.float32],
        mask_BA: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """[B] action indices, all legal."""
        ...


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision of an episode, as reports and trajectories store it."""

    action: str
    step_index: int
    timestep: float
    nfe: int
    """NFE spent when the decision was taken."""
    attempt: int
    image_reward: float | None
    """The looked-at score, where the policy had one."""


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """A finished episode. `preview_images` holds one small image a decision when recording was asked for."""

    request: EpisodeRequest
    latents_CHW: torch.Tensor
    nfe: int
    network_evals: int
    looks: int
    attempts: int
    cost: float
    """NFE plus looks at their measured price, in units of one NFE."""
    decisions: tuple[DecisionRecord, ...]
    preview_images: tuple[Images, ...] = ()
