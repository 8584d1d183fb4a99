"""The public ImageReward model in batches, against the package's own one-image `score`.

The published sizes take gigabytes, so the package builds a narrow one here, with random weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import BertTokenizer

from rewards_service.scorers.image_reward import ImageRewardScorer, import_package
from tests.rewards_service.conftest import WORDS

WIDTH = 768  # The package's head reads exactly this many text features.


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint and its med_config.json, for a package that builds small networks without downloads."""
    package = import_package()
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    vision = {"img_size": 224, "patch_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(blip_pretrain, "create_vit", lambda *_: (VisionTransformer(**vision), 32))
    monkeypatch.setattr(blip_pretrain, "init_tokenizer", lambda: tokenizer)
    med = {
        "vocab_size": len(tokenizer),
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
    (tmp_path / "med_config.json").write_text(json.dumps(med))
    torch.manual_seed(5)
    model = package.ImageReward(med_config=str(tmp_path / "med_config.json"))
    for value in model.mlp.parameters():  # The package's own start is too flat to tell images apart.
        value.data.normal_(std=0.1)
    torch.save(model.state_dict(), tmp_path / "reward.pt")
    return tmp_path / "reward.pt", tmp_path / "med_config.json"


def test_batches_score_as_the_package_does_one_by_one(
    checkpoint: tuple[Path, Path], pictures: NDArray[np.uint8], captions: list[str]
) -> None:
    package = import_package()
    model = package.load(str(checkpoint[0]), device="cpu", med_config=str(checkpoint[1]))
    expected = [
        model.score(caption, Image.fromarray(image))
        for image, caption in zip(pictures, captions, strict=True)
    ]
    scorer = ImageRewardScorer.load(*checkpoint)
    together = scorer.score(pictures, captions)["image_reward"]
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(together, expected, atol=1e-4)
    order = np.random.default_rng(0).permutation(len(captions))
    for at in range(0, len(order), 7):
        rows = order[at : at + 7]
        again = scorer.score(pictures[rows], [captions[row] for row in rows])["image_reward"]
        np.testing.assert_allclose(again, together[rows], atol=1e-4)
