"""Stage 7: the preference scorer, in ImageReward's role: how right will this picture be for its caption?

A third of each batch are renders with right and altered captions, two thirds are generated pictures and
intermediate previews, labelled by the verifier's score of the final picture. Beside the score, a
throw-away head reads from each image token which shape and colour the verifier found in its cell:
dense labels that teach the network to see, where one number a picture teaches it little.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rewards_service.scorers.preference import save_preference
from rewards_service.scorers.preference_network import PreferenceConfig, PreferenceNetwork
from shapes.tokenizer import MAX_LENGTH, build_tokenizer
from shapes.training.captions import altered
from shapes.training.diffusion import MAP_CLASSES, alignment_loss
from shapes.training.files import load_state, log_line, save_state
from shapes.training.optimizer import MuonAdamW, set_learning_rate, warmup_cosine
from shapes.training.samples import PREVIEW_STEPS, load_samples
from shapes.training.scenes import MAP_SIZE, load_scenes
from shapes.training.text import token_ids
from shapes.verify import strict_score

STEPS = 4000
BATCH = 60
RENDERS = 12_000
LEARNING_RATE = 1e-3
DENSE = 0.3
"""Weight of the object-map loss."""
CHUNKS = range(3, 7)
SAVE_EVERY = 250


class _LabelledRenders:
    """Scenes with a caption that is right in a third of the cases, and the verifier's score of the pair."""

    def __init__(self, work: Path, rng: np.random.Generator) -> None:
        scenes = load_scenes(work / "scenes", CHUNKS)
        self.images = scenes.images[:RENDERS]
        self.shape_map, self.color_map = scenes.shape_map[:RENDERS], scenes.color_map[:RENDERS]
        self.captions = []
        self.strict = np.ones(len(self.images), np.float32)
        for row, caption in enumerate(scenes.captions[:RENDERS]):
            for _ in range(int(rng.choice(3, p=(0.35, 0.4, 0.25)))):
                caption = altered(caption, rng)
            self.captions.append(caption)
            self.strict[row] = strict_score(self.images[row], caption)


def _to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_preference(work: Path, steps: int = STEPS, start_from: Path | None = None) -> None:
    """Train the scorer on `work/samples` and write `work/preference`.

    The last chunk of samples is left out of training and gives the logged correlations: over pictures
    minus their prompt's mean, for final pictures and for previews half way.
    """
    folder = work / "preference"
    if (folder / "config.json").exists():
        return
    torch.manual_seed(7)
    rng = np.random.default_rng(7)
    tokenizer = build_tokenizer(work / "tokenizer")
    renders = _LabelledRenders(work, rng)
    samples = load_samples(work / "samples")
    render_ids = token_ids(tokenizer, renders.captions)
    sample_ids = token_ids(tokenizer, samples.captions)
    network = PreferenceNetwork(
        PreferenceConfig(
            vocab_size=len(tokenizer), context_length=MAX_LENGTH, eos_token_id=int(tokenizer.eos_token_id)
        )
    )
    dense_head = nn.Linear(network.config.width, sum(MAP_CLASSES))
    captured: dict[str, torch.Tensor] = {}
    network.transformer.register_forward_hook(lambda module, inputs, output: captured.update(hidden=output))
    modules = nn.ModuleList([network, dense_head])
    apart = [*network.token_embedding.parameters(), network.image_positions, network.token_positions]
    apart += [network.class_token, *network.head.parameters(), *dense_head.parameters()]
    optimizer = MuonAdamW(modules.parameters(), apart, LEARNING_RATE, weight_decay=0.02)
    held = len(samples.strict) - 512
    start = 0
    if state := load_state(work / "preference.pt"):
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, steps):
        rng = np.random.default_rng([7, step])
        torch.manual_seed(7_000 + step)
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 100))
        some = rng.integers(0, len(renders.strict), BATCH // 3)
        other = rng.integers(0, held, 2 * BATCH // 3)
        which = rng.choice(len(PREVIEW_STEPS), len(other), p=(0.08, 0.12, 0.12, 0.12, 0.12, 0.12, 0.32))
        images = np.concatenate([renders.images[some], samples.previews[other, which]])
        logits = network(_to_tensor(images), torch.cat([render_ids[some], sample_ids[other]]))
        target = torch.from_numpy(np.concatenate([renders.strict[some], samples.strict[other]]))
        shape = torch.from_numpy(np.concatenate([renders.shape_map[some], samples.shape_map[other]])).long()
        color = torch.from_numpy(np.concatenate([renders.color_map[some], samples.color_map[other]])).long()
        cells = dense_head(captured["hidden"][:, 1 : 1 + MAP_SIZE**2])
        cells = cells.transpose(1, 2).unflatten(2, (MAP_SIZE, MAP_SIZE))
        loss = F.binary_cross_entropy_with_logits(logits, target)
        dense = alignment_loss(cells, shape, color)
        (loss + DENSE * dense).backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            final = _within_prompt(
                network, samples.previews[held:, -1], sample_ids[held:], samples.strict[held:]
            )
            half = _within_prompt(
                network, samples.previews[held:, 1], sample_ids[held:], samples.strict[held:]
            )
            log_line(
                work / "preference.jsonl",
                step=step + 1,
                loss=loss.item(),
                dense=dense.item(),
                within_final=final,
                within_half=half,
            )
            save_state(
                work / "preference.pt",
                {"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
            )
    aside = work / "preference.part"
    shutil.rmtree(aside, ignore_errors=True)
    save_preference(aside, network.half())
    tokenizer.save_pretrained(aside)
    os.replace(aside, folder)


@torch.no_grad()
def _within_prompt(
    network: PreferenceNetwork, images: NDArray[np.uint8], ids: torch.Tensor, strict: NDArray[np.float32]
) -> float:
    """Correlation of prediction and score over a prompt's two seeds (the halves of a chunk)."""
    network.eval()
    parts = zip(_to_tensor(images).split(64), ids.split(64), strict=True)
    predicted = torch.cat([network(image, tokens).sigmoid() for image, tokens in parts]).numpy()
    network.train()
    half = len(strict) // 2
    return float(np.corrcoef(predicted[:half] - predicted[half:], strict[:half] - strict[half:])[0, 1])
