"""A CLIP image tower at its published size with random weights, as what a preview costs to embed.

Always true here: its embeddings are unit vectors that mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from actors.contracts import Images
from evaluation.architectures import made_on

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class RandomClip:
    """CLIP ViT-L/14's image tower (Radford et al. 2021) with random weights, as what `seed` needs scored.

    Texts are unit vectors drawn once a prompt: their encoder runs once a prompt and is not measured.
    """

    embedding_dim = 768

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
            projection_dim=self.embedding_dim,
        )
        with made_on(device, dtype):
            self._tower = CLIPVisionModelWithProjection(config).eval()
        self._mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Unit embeddings of images and prompts, and their product as image_reward."""
        pixels = torch.from_numpy(images).to(self._mean.device).permute(0, 3, 1, 2).float() / 255.0
        pixels = torch.nn.functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
        embedded = self._tower(((pixels - self._mean) / self._std).to(self._tower.dtype)).image_embeds
        image_BD = torch.nn.functional.normalize(embedded.float(), dim=1).cpu().numpy()
        text_BD = np.stack([self._text(prompt) for prompt in prompts])
        return {"clip_image": image_BD, "clip_text": text_BD, "image_reward": (image_BD * text_BD).sum(1)}

    def _text(self, prompt: str) -> NDArray[np.float32]:
        drawn = np.random.default_rng(list(prompt.encode())).standard_normal(self.embedding_dim)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)
