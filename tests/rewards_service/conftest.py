"""Random-weight folders in the formats of the real models, made once a session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import CLIPTokenizer, Dinov2Config, Dinov2Model

from rewards_service.scorers.aesthetic import AestheticHead, save_head
from rewards_service.scorers.preference import save_preference
from rewards_service.scorers.preference_network import PreferenceConfig, PreferenceNetwork

torch.set_num_threads(1)
WORDS = ("a", "red", "green", "blue", "circle", "square", "star", "left", "right", "of", "two", "and")
CLIP_SIZES: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12},
    "text_cfg": {"context_length": 24, "width": 48, "heads": 4, "layers": 2},
}


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose only whole words are WORDS."""
    folder.mkdir(parents=True, exist_ok=True)
    merges: list[str] = []
    pieces = [chr(code) for code in range(97, 123)]
    vocabulary = [*pieces, *(piece + "</w>" for piece in pieces)]
    for word in WORDS:
        head, *rest = [*word[:-1], word[-1] + "</w>"]
        for piece in rest:
            merges.append(f"{head} {piece}")
            head += piece
            vocabulary.append(head)
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of an embedded world's reward models, with random weights; CLIP and DINO in half precision."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("world")
    tokenizer = write_tokenizer(folder / "clip")
    sizes = {**CLIP_SIZES, "text_cfg": {**CLIP_SIZES["text_cfg"], "vocab_size": len(tokenizer)}}
    clip = open_clip.CLIP(**sizes)
    save_file(clip.half().state_dict(), str(folder / "clip" / "open_clip_model.safetensors"))
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    config = {"model_cfg": sizes, "preprocess_cfg": preprocess}
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    save_head(folder / "aesthetic.safetensors", AestheticHead([24, 16, 1], "gelu"))
    dino = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=8
    )
    Dinov2Model(dino).half().save_pretrained(str(folder / "dino"))
    preference = PreferenceConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, image_size=32, width=32, layers=2
    )
    save_preference(folder / "preference", PreferenceNetwork(preference))
    write_tokenizer(folder / "preference")
    return folder


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    """Sixty-four images of 64 x 64, each 8 x 8 random squares."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Sixty-four captions, some of them twice, one empty."""
    rng = np.random.default_rng(4)
    made = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(60)]
    return [*made, made[0], made[1], made[2], ""]
