"""The public ImageReward model (Xu et al. 2023, arXiv 2304.05977), batched.

Always true: a batch scores as the package's own one-image `score` does. This is the one place that knows
how image-reward 1.5, written for older transformers, is imported beside today's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.modeling_utils
import transformers.pytorch_utils
from torch import Tensor

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import CHUNK, CLIP_MEAN, CLIP_STD, Pixels, in_tiles
from rewards_service.scorers.pretrained import checkpoint_file, fill, read_weights

MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")
MAX_TOKENS = 35
"""Prompt length the model was trained with, padding included."""
SCORING_PARTS = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
"""What has to be in a checkpoint; the rest of BLIP takes no part in scoring."""


def import_package() -> ModuleType:
    """Imports ImageReward, after putting back three functions that transformers has moved elsewhere."""
    for name in MOVED:
        if not hasattr(transformers.modeling_utils, name):
            setattr(transformers.modeling_utils, name, getattr(transformers.pytorch_utils, name))
    import ImageReward

    package: ModuleType = ImageReward
    return package


class ImageRewardScorer:
    """Gives `image_reward` [N], about -2.5 to 2.5, higher is better.

    The model judges the picture it is shown, finished or not, so `image_reward_now` is the same number.
    """

    name = "image_reward"
    outputs: tuple[str, ...] = ("image_reward", "image_reward_now")

    def __init__(
        self,
        model: Any,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.model = model.to(self.device).eval()
        self.model.blip.to(
            dtype
        )  # the head stays in float32: it costs nothing, and rewards keep their digits
        self.pixels = Pixels(224, CLIP_MEAN, CLIP_STD, rounded_crop=True)
        self.batch_size = batch_size

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        med_config: str | Path,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = CHUNK,
    ) -> ImageRewardScorer:
        """Loads a checkpoint with its med_config.json: files, or those of a hub as `checkpoint_file` says.

        The package's own `load` is not asked: it fetches by one name only, and takes incomplete weights.
        """
        file = checkpoint_file(checkpoint)
        model = import_package().ImageReward(med_config=str(checkpoint_file(med_config)))
        fill(model, read_weights(file), SCORING_PARTS)
        return cls(model, device, dtype=dtype, batch_size=batch_size)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One pass over images and prompts together."""
        text = self.model.blip.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        pixels_NCHW = self.pixels(images, self.device)
        rewards_N = in_tiles(
            self._rewards, text.input_ids, text.attention_mask, pixels_NCHW, batch_size=self.batch_size
        )
        rewards = rewards_N.cpu().numpy()
        return {"image_reward": rewards, "image_reward_now": rewards}

    def _rewards(self, tokens_BL: Tensor, mask_BL: Tensor, images_BCHW: Tensor) -> Tensor:
        """What the package's `score` does after its preprocessing, for B pairs."""
        image_BTD = self.model.blip.visual_encoder(images_BCHW.to(self.dtype))
        text = self.model.blip.text_encoder(
            tokens_BL,
            attention_mask=mask_BL,
            encoder_hidden_states=image_BTD,
            encoder_attention_mask=torch.ones(image_BTD.shape[:2], dtype=torch.long, device=self.device),
            return_dict=True,
        )
        rewards_B: Tensor = self.model.mlp(text.last_hidden_state[:, 0].float())[:, 0]
        return (rewards_B - self.model.mean) / self.model.std
