"""Small models with random weights, in the files and folders in which the real ones are published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
from torch import nn
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from rewards_service.scorers.image_reward import import_package
from tests.rewards_service.conftest import WORDS, write_tokenizer

HPS_ARCHITECTURE = "ViT-tiny-8"
WIDTH = 768  # ImageReward's head reads exactly this many text features.
BERT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "add_cross_attention": True,
    "add_type_embeddings": False,
    "fusion_layer": 0,
}


@contextmanager
def small_blip(folder: Path) -> Iterator[None]:
    """Inside, image-reward builds small networks, and a tokenizer without a download."""
    import_package()
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"img_size": 224, "patch_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2}

    def small_vision(*_: object) -> tuple[nn.Module, int]:
        return VisionTransformer(**sizes), 32

    with (
        mock.patch.object(blip_pretrain, "create_vit", side_effect=small_vision),
        mock.patch.object(blip_pretrain, "init_tokenizer", return_value=tokenizer),
    ):
        yield


def write_image_reward(folder: Path) -> None:
    """reward.pt and med_config.json; inside `small_blip`."""
    vocabulary = len((folder / "vocab.txt").read_text().split())
    (folder / "med_config.json").write_text(json.dumps({**BERT, "vocab_size": vocabulary}))
    torch.manual_seed(5)
    model = import_package().ImageReward(med_config=str(folder / "med_config.json"))
    for value in model.mlp.parameters():  # The package's own start is too flat to tell images apart.
        value.data.normal_(std=0.1)
    torch.save(model.state_dict(), folder / "reward.pt")


def laion_head(width: int) -> nn.Sequential:
    """The layers of sac+logos+ava1-l14-linearMSE, but for the width of its first."""
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    ).eval()


def write_laion_head(path: Path, width: int) -> None:
    """A checkpoint as it is published: a state dict with numbers of `layers`."""
    weights = laion_head(width).state_dict()
    torch.save({f"layers.{name}": value for name, value in weights.items()}, path)


def write_hps(folder: Path) -> None:
    """hps.pt, the weights under "state_dict", for a small architecture that open_clip knows by name."""
    sizes = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / f"{HPS_ARCHITECTURE}.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(folder / f"{HPS_ARCHITECTURE}.json")
    torch.manual_seed(7)
    torch.save({"state_dict": open_clip.CLIP(**sizes).state_dict()}, folder / "hps.pt")


def write_pick_score(folder: Path) -> None:
    """`pick` with the model, `processor` with tokenizer and image processor, as transformers saves them."""
    tokenizer = write_tokenizer(folder / "processor")
    CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32).save_pretrained(str(folder / "processor"))
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        **layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    torch.manual_seed(8)
    model = CLIPModel(config)
    model.logit_scale.data.fill_(4.6052)
    model.save_pretrained(str(folder / "pick"))
