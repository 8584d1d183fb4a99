"""The embedded world's preference scorer: a trained `PreferenceNetwork` with its tokenizer, in a folder.

Always true: both scores lie in [0, 1]. `image_reward` estimates how right the finished picture will be
for the caption, `image_reward_now` how right this picture is; a reward for an image returned early needs
the latter, a decision about what to do with a preview the former. A folder holds config.json,
model.safetensors and the CLIP tokenizer's files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import Pixels, in_tiles
from rewards_service.scorers.preference_network import PreferenceConfig, PreferenceNetwork


def save_preference(folder: str | Path, network: PreferenceNetwork) -> None:
    """Writes config.json and model.safetensors; the tokenizer is saved beside them by its own method."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json.partial"
    config.write_text(json.dumps(asdict(network.config), indent=2) + "\n", encoding="utf-8")
    weights = folder / "model.safetensors.partial"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, str(weights))
    os.replace(config, folder / "config.json")
    os.replace(weights, folder / "model.safetensors")


def load_preference(folder: str | Path) -> PreferenceNetwork:
    """Reads what `save_preference` wrote, in any floating-point type, as float32."""
    folder = Path(folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    accepted = [field.name for field in fields(PreferenceConfig)]
    unknown = sorted(set(values) - set(accepted))
    if unknown:
        raise ValueError(f"{folder / 'config.json'}: unknown {unknown[0]!r}; accepted: {', '.join(accepted)}")
    network = PreferenceNetwork(PreferenceConfig(**values))
    network.load_state_dict(load_file(str(folder / "model.safetensors")))
    return network


class PreferenceScorer:
    """Gives `image_reward` and `image_reward_now`, [N] each: the network's sigmoids."""

    name = "preference"
    outputs: tuple[str, ...] = ("image_reward", "image_reward_now")

    def __init__(
        self, network: PreferenceNetwork, tokenizer: CLIPTokenizer, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        if self.device.type == "cpu":
            self.network.stem.to(memory_format=torch.channels_last)  # its convolutions: four times faster
        self.tokenizer = tokenizer
        self.pixels = Pixels(network.config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)

    @classmethod
    def from_folder(cls, folder: str | Path, device: str | torch.device = "cpu") -> PreferenceScorer:
        """Loads network and tokenizer; the tokenizer's files lie in the folder or its `tokenizer/`."""
        nested = Path(folder) / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(str(nested if nested.is_dir() else folder))
        return cls(load_preference(folder), tokenizer, device)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """One pass over images and captions together."""
        tokens_NL: Tensor = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.network.config.context_length,
            return_tensors="pt",
        ).input_ids.to(self.device)
        logits_N2 = in_tiles(self.network, self.pixels(images, self.device), tokens_NL)
        # Rounded from float64: in float32 a sigmoid's last bit depends on its place in a vector of them.
        finished_N, now_N = logits_N2.cpu().double().sigmoid().float().unbind(dim=1)
        return {"image_reward": finished_N.numpy(), "image_reward_now": now_N.numpy()}
