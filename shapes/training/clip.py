"""A small CLIP, trained by open_clip's own model and loss on the same scenes.

Every batch holds each scene's caption and, as extra negatives, a caption with one word changed: without
them a contrastive model learns colours and textures and never looks at counts, sizes or relations
(hard negatives as in NegCLIP, Yuksekgonul et al., 2023).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from shapes.tokenizer import MAX_LENGTH, build_tokenizer
from shapes.training.captions import altered
from shapes.training.files import log_line
from shapes.training.optimizer import MuonAdamW, set_learning_rate, warmup_cosine
from shapes.training.scenes import load_scenes
from shapes.training.text import token_ids

STEPS = 700
BATCH = 96
LEARNING_RATE = 1.5e-3
CHUNKS = range(0, 6)
NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def model_config(vocab_size: int) -> dict[str, object]:
    """open_clip's description of the model: ViT of 4 layers on 8 x 8 patches, text of 3 layers."""
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 64,
            "layers": 4,
            "width": 96,
            "head_width": 24,
            "patch_size": 8,
            "mlp_ratio": 3.0,
        },
        "text_cfg": {
            "context_length": MAX_LENGTH,
            "vocab_size": vocab_size,
            "width": 96,
            "heads": 4,
            "layers": 3,
            "mlp_ratio": 3.0,
        },
    }


def train_clip(work: Path, steps: int = STEPS) -> None:
    """Train the model and write `work/clip` (open_clip config, safetensors, tokenizer)."""
    folder = work / "clip"
    if (folder / "open_clip_config.json").exists():
        return
    torch.manual_seed(4)
    rng = np.random.default_rng(4)
    scenes = load_scenes(work / "scenes", CHUNKS)
    tokenizer = build_tokenizer(work / "tokenizer")
    config = model_config(len(tokenizer))
    model = open_clip.CLIP(**config)
    embeddings = [model.token_embedding.weight, model.positional_embedding, model.logit_scale]
    embeddings += [model.visual.positional_embedding, model.visual.conv1.weight]
    optimizer = MuonAdamW(model.parameters(), embeddings, LEARNING_RATE)
    for step in range(steps):
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 50))
        index = rng.integers(0, len(scenes), BATCH)
        captions = [scenes.captions[i] for i in index]
        wrong = [altered(caption, rng) for caption in captions]
        image = torch.from_numpy(scenes.images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1
        image_ND = model.encode_image(image, normalize=True)
        text_ND = model.encode_text(token_ids(tokenizer, captions + wrong), normalize=True)
        logits = model.logit_scale.exp() * image_ND @ text_ND.T
        target = torch.arange(BATCH)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :BATCH].T, target)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if (step + 1) % 50 == 0:
            right = (logits.argmax(1) == target).float().mean().item()
            log_line(work / "clip.jsonl", step=step + 1, loss=loss.item(), accuracy=right)
    aside = work / "clip.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    tokenizer.save_pretrained(aside)
    description = {"model_cfg": config, "preprocess_cfg": NORMALISATION | {"interpolation": "bicubic"}}
    (aside / "open_clip_config.json").write_text(json.dumps(description, indent=1))
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, aside / "open_clip_model.safetensors")
    os.replace(aside, folder)
