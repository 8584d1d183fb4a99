"""The network that plays ImageReward's role in the embedded world: does this picture show this caption?

Image patches from a small convolutional stem and caption tokens meet in one pre-norm transformer; a
classification token reads out two logits, whose sigmoids estimate strict scores in [0, 1]: the one that the
finished picture will have, and the one of the picture as it is now (the same for a finished picture, not
for the preview of one). This file needs torch and nothing else, so that a training recipe can use the
network without the service.

Always true: what a caption's padding holds never changes the logit, in training as in scoring.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STEM_CHANNELS = (32, 64, 96)
STEM_STRIDES = (2, 2, 1, 2)


@dataclass(frozen=True)
class PreferenceConfig:
    """Sizes of a `PreferenceNetwork`; every field is a JSON number, so that a folder can keep them."""

    vocab_size: int = 173
    context_length: int = 24
    eos_token_id: int = 172
    image_size: int = 64
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 384
    dropout: float = 0.1


class PreferenceNetwork(nn.Module):
    """Scores B images of `image_size` pixels in [-1, 1] against B tokenised captions."""

    def __init__(self, config: PreferenceConfig) -> None:
        super().__init__()
        self.config = config
        width, reduction = config.width, 1
        stem: list[nn.Module] = []
        channels = (3, *STEM_CHANNELS, width)
        for index, stride in enumerate(STEM_STRIDES):
            kernel = 5 if index == 0 else 3
            stem += [nn.Conv2d(channels[index], channels[index + 1], kernel, stride, kernel // 2), nn.GELU()]
            reduction *= stride
        self.stem = nn.Sequential(*stem[:-1])
        side = -(-config.image_size // reduction)
        self.image_positions = nn.Parameter(torch.randn(1, side * side, width) * 0.02)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.token_positions = nn.Parameter(torch.randn(1, config.context_length, width) * 0.02)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width,
            config.heads,
            config.mlp_width,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(
            block, config.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 2)

    def padding(self, tokens_BL: Tensor) -> Tensor:
        """True at the tokens behind a caption's first end token."""
        ends_BL = (tokens_BL == self.config.eos_token_id).long()
        return (ends_BL.cumsum(dim=1) - ends_BL) > 0

    def forward(self, images_BCHW: Tensor, tokens_BL: Tensor, padding_BL: Tensor | None = None) -> Tensor:
        """Logits [B, 2], of the finished picture and of the picture as it is.

        padding_BL is True at caption tokens to ignore (default: all behind the end token).
        """
        image_BTD = self.stem(images_BCHW).flatten(2).transpose(1, 2) + self.image_positions
        text_BLD = self.token_embedding(tokens_BL) + self.token_positions[:, : tokens_BL.shape[1]]
        class_B1D = self.class_token.expand(len(images_BCHW), -1, -1)
        if padding_BL is None:
            padding_BL = self.padding(tokens_BL)
        seen = padding_BL.new_zeros(len(images_BCHW), 1 + image_BTD.shape[1])
        hidden_BTD = self.transformer(
            torch.cat([class_B1D, image_BTD, text_BLD], dim=1),
            src_key_padding_mask=torch.cat([seen, padding_BL], dim=1),
        )
        logits_B2: Tensor = self.head(hidden_BTD[:, 0])
        return logits_B2
