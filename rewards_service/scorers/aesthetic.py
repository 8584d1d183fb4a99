"""How pleasing a picture is, read off its CLIP embedding by a small head.

Always true: the head sees the embedding of the same CLIP pass that gives the CLIP score, so aesthetics
cost no second image pass. The public LAION head is a chain of linear layers without activations; others
name theirs in the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import in_tiles
from rewards_service.scorers.clip import OpenClipScorer
from rewards_service.scorers.pretrained import checkpoint_file, read_weights

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}


class AestheticHead(nn.Module):
    """Linear layers of the given widths, the last one 1, with one activation between them.

    `width` is that of the embeddings it takes.
    """

    def __init__(self, widths: Sequence[int], activation: str = "none") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: {activation!r}; accepted: {', '.join(ACTIVATIONS)}")
        self.width = widths[0]
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, embeddings_BD: Tensor) -> Tensor:
        """Scores [B] of CLIP image embeddings."""
        hidden_BD = embeddings_BD
        for index, layer in enumerate(self.layers):
            hidden_BD = layer(self.activation(hidden_BD) if index else hidden_BD)
        return hidden_BD[:, 0]


def save_head(path: str | Path, head: AestheticHead) -> None:
    """Writes keys `layers.N.weight` and `layers.N.bias`, the activation's name in the metadata."""
    aside = Path(path).with_suffix(".partial")
    save_file(head.state_dict(), str(aside), metadata={"activation": head.activation_name})
    os.replace(aside, path)


def load_head(path: str | Path) -> AestheticHead:
    """Reads a head from a file, or from a hub as `checkpoint_file` says, its widths from the weights.

    LAION's numbering, where dropout layers take numbers too, is accepted; the activation is named in
    safetensors' metadata, and none without it.
    """
    file, activation = checkpoint_file(path), "none"
    weights = {key: value.float() for key, value in read_weights(file).items()}
    if file.suffix == ".safetensors":
        with safe_open(str(file), "pt") as opened:
            activation = (opened.metadata() or {}).get("activation", "none")
    if not weights or not all(key.startswith("layers.") for key in weights):
        raise ValueError("holds no head; accepted: linear layers called layers.N")
    numbers = sorted({int(key.split(".")[1]) for key in weights})
    widths = [weights[f"layers.{numbers[0]}.weight"].shape[1]]
    widths += [weights[f"layers.{number}.weight"].shape[0] for number in numbers]
    head = AestheticHead(widths, activation)
    for layer, number in zip(head.layers, numbers, strict=True):
        layer.load_state_dict({part: weights[f"layers.{number}.{part}"] for part in ("weight", "bias")})
    return head


class AestheticScorer:
    """A CLIP scorer with a head on top: CLIP's outputs and `aesthetic` [N] from one pass."""

    name = "clip+aesthetic"

    def __init__(self, clip: OpenClipScorer, head: AestheticHead) -> None:
        taken, given = head.width, clip.text([""]).shape[1]
        if taken != given:
            raise ValueError(f"takes embeddings of {taken} numbers; accepted: a head for the {given} of clip")
        self.clip = clip
        self.head = head.to(clip.device).eval()
        self.outputs = (*clip.outputs, "aesthetic")

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """CLIP's scores, and the head's on the same embeddings."""
        scores = self.clip.score(images, prompts)
        embeddings_ND = torch.from_numpy(scores["clip_image"]).to(self.clip.device)
        return {**scores, "aesthetic": in_tiles(self.head, embeddings_ND).cpu().numpy()}
