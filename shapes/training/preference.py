"""The preference scorer, in ImageReward's role: how right will this picture be for its caption?

Trained on renders and on generated pictures with their previews, each with its own or an altered caption
and labelled twice by the verifier: with the final picture's score for that caption, and with the score of
the view itself. A forecast alone cannot judge an image that is returned early: a blurred preview of what
would have become right is not right. Half of the pictures are mirrored, captions with them. Beside the
score, throw-away heads are asked for what is behind it: at each image token which shape and colour the
verifier found in its cell, at each noun whether what the caption says of it holds. One number a picture
teaches a network little; these teach it to see and to compare.

Always true: no held-out caption is learned from, mirrored and altered ones included, and step i draws the
same batch whether the training was interrupted or not.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import nn
from transformers import CLIPTokenizer

from rewards_service.scorers.preference import save_preference
from rewards_service.scorers.preference_network import PreferenceConfig, PreferenceNetwork
from shapes.captions import split_of
from shapes.tokenizer import MAX_LENGTH, build_tokenizer
from shapes.training.captions import altered, mirrored
from shapes.training.diffusion import MAP_CLASSES, alignment_loss
from shapes.training.facts import NOUN_FACTS, SCENE_FACTS, fact_labels, fact_loss
from shapes.training.files import load_state, log_line, save_state
from shapes.training.optimizer import MuonAdamW, set_learning_rate, warmup_cosine
from shapes.training.samples import Samples, load_samples
from shapes.training.scenes import MAP_SIZE, load_scenes
from shapes.training.text import noun_positions, token_ids
from shapes.verify import Verdict, verdicts

STEPS = 3000
BATCH_RENDERS = 20
BATCH_SAMPLES = 40
RENDERS = 12_000
RENDERS_ALTERED = 0.65
SAMPLES_ALTERED = 0.3
"""How many pictures of each kind come with an altered caption."""
PREVIEW_SHARES = (0.08, 0.12, 0.12, 0.12, 0.12, 0.12, 0.32)
"""How often a trajectory is seen at each of its kept previews; the last is the final picture."""
HALF_WAY = 1
"""Index of the preview after 5 of 10 steps."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.02
DENSE = 0.3
FACTS = 0.5
"""Weights of the object-map loss and of the loss on facts, beside the score's."""
CHUNKS = range(3, 7)
SAVE_EVERY = 250
HELD_OUT = 512
"""Trajectories, the last chunk of samples, that only measure."""


@dataclass(frozen=True)
class _Captions:
    """A caption for each of N pictures: token ids [N, 24], those of the mirrored caption, and verdicts.

    strict is [N, 2, V], of the final picture and of each of its V views. Facts are [N, 4, 2] of the nouns and
    [N, 2] of the scene, as `fact_labels` gives them, of the final picture.
    """

    ids: torch.Tensor
    mirrored_ids: torch.Tensor
    may_mirror: NDArray[np.bool_]
    strict: NDArray[np.float32]
    noun_facts: NDArray[np.float32]
    scene_facts: NDArray[np.float32]


@dataclass(frozen=True)
class _Pictures:
    """N pictures, each seen in V views: uint8 [N, V, 64, 64, 3], with maps [N, 8, 8] and two captions."""

    views: NDArray[np.uint8]
    view_shares: tuple[float, ...]
    shape_map: NDArray[np.uint8]
    color_map: NDArray[np.uint8]
    own: _Captions
    other: _Captions

    def draw(self, size: int, altered_share: float, rng: np.random.Generator) -> _Batch:
        rows = rng.integers(0, len(self.views), size)
        views = rng.choice(len(self.view_shares), size, p=self.view_shares)
        images = self.views[rows, views]
        maps = np.stack([self.shape_map[rows], self.color_map[rows]], axis=1)
        use_other, flip = rng.random(size) < altered_share, rng.random(size) < 0.5
        captions = [self.other if other else self.own for other in use_other]
        mirror = np.array([c.may_mirror[row] for c, row in zip(captions, rows, strict=True)]) & flip
        images[mirror] = images[mirror, :, ::-1]
        maps[mirror] = maps[mirror, :, :, ::-1]
        told = list(zip(captions, rows, mirror, strict=True))
        strict = [c.strict[row, :, view] for c, row, view in zip(captions, rows, views, strict=True)]
        return _Batch(
            _to_tensor(images),
            torch.stack([(c.mirrored_ids if flipped else c.ids)[row] for c, row, flipped in told]),
            torch.from_numpy(np.stack(strict)),
            torch.from_numpy(maps).long(),
            torch.from_numpy(np.stack([c.noun_facts[row] for c, row, _ in told])),
            torch.from_numpy(np.stack([c.scene_facts[row] for c, row, _ in told])),
        )


@dataclass(frozen=True)
class _Batch:
    """Images [B, 3, 64, 64] in [-1, 1], ids [B, 24], strict scores [B, 2], maps [B, 2, 8, 8], facts."""

    images: torch.Tensor
    ids: torch.Tensor
    strict: torch.Tensor
    maps: torch.Tensor
    noun_facts: torch.Tensor
    scene_facts: torch.Tensor


def _captions(tokenizer: CLIPTokenizer, captions: list[str], judged: list[list[Verdict]]) -> _Captions:
    """`judged` holds a verdict for each view of each picture, the final one last."""
    mirrors = [mirrored(caption) for caption in captions]
    labels = [fact_labels(caption, views[-1]) for caption, views in zip(captions, judged, strict=True)]
    now = np.array([[verdict.strict for verdict in views] for views in judged], np.float32)
    return _Captions(
        token_ids(tokenizer, captions),
        token_ids(tokenizer, mirrors),
        np.array([split_of(caption) == "train" for caption in mirrors]),
        np.stack([np.broadcast_to(now[:, -1:], now.shape), now], axis=1),
        np.stack([nouns for nouns, _ in labels]),
        np.stack([scene for _, scene in labels]),
    )


def own_and_other(
    tokenizer: CLIPTokenizer, views: NDArray[np.uint8], captions: list[str], rng: np.random.Generator
) -> tuple[_Captions, _Captions]:
    """The captions, and the same altered once or twice, with the verifier's verdicts on [N, V] views."""
    others = [altered(caption, rng) for caption in captions]
    others = [altered(other, rng) if rng.random() < 0.4 else other for other in others]
    pairs = zip(views, captions, others, strict=True)
    judged = [
        [verdicts(view, pair) for view in seen] for seen, *pair in track(pairs, "verifying", total=len(views))
    ]
    own, other = ([[pair[which] for pair in seen] for seen in judged] for which in (0, 1))
    return _captions(tokenizer, captions, own), _captions(tokenizer, others, other)


def _renders(work: Path, tokenizer: CLIPTokenizer, rng: np.random.Generator) -> _Pictures:
    scenes = load_scenes(work / "scenes", CHUNKS)
    images, captions = scenes.images[:RENDERS], scenes.captions[:RENDERS]
    return _Pictures(
        images[:, None],
        (1.0,),
        scenes.shape_map[:RENDERS],
        scenes.color_map[:RENDERS],
        *own_and_other(tokenizer, images[:, None], captions, rng),
    )


def _generated(samples: Samples, tokenizer: CLIPTokenizer, rng: np.random.Generator) -> _Pictures:
    learned = slice(0, len(samples.strict) - HELD_OUT)
    captions, previews = samples.captions[learned], samples.previews[learned]
    return _Pictures(
        previews,
        PREVIEW_SHARES,
        samples.shape_map[learned],
        samples.color_map[learned],
        *own_and_other(tokenizer, previews, captions, rng),
    )


def _to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_preference(work: Path, steps: int = STEPS) -> None:
    """Train the scorer on renders and `work/samples`, and write `work/preference`.

    The last chunk of samples is left out of training and gives the logged correlations of the forecast: over
    pictures minus their prompt's mean, for final pictures and for previews half way.
    """
    folder = work / "preference"
    if (folder / "config.json").exists():
        return
    torch.manual_seed(7)
    tokenizer = build_tokenizer(work / "tokenizer")
    samples = load_samples(work / "samples")
    renders = _renders(work, tokenizer, np.random.default_rng([7, 0]))
    generated = _generated(samples, tokenizer, np.random.default_rng([7, 1]))
    network = PreferenceNetwork(
        PreferenceConfig(
            vocab_size=len(tokenizer), context_length=MAX_LENGTH, eos_token_id=int(tokenizer.eos_token_id)
        )
    )
    map_head = nn.Linear(network.config.width, sum(MAP_CLASSES))
    noun_head = nn.Linear(network.config.width, NOUN_FACTS)
    scene_head = nn.Linear(network.config.width, SCENE_FACTS)
    captured: dict[str, torch.Tensor] = {}
    network.transformer.register_forward_hook(lambda module, inputs, output: captured.update(hidden=output))
    modules = nn.ModuleList([network, map_head, noun_head, scene_head])
    apart = [*network.token_embedding.parameters(), network.image_positions, network.token_positions]
    apart.append(network.class_token)
    for head in (network.head, map_head, noun_head, scene_head):
        apart += head.parameters()
    optimizer = MuonAdamW(modules.parameters(), apart, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    start = 0
    if state := load_state(work / "preference.pt"):
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    losses: list[tuple[float, float, float]] = []
    for step in range(start, steps):
        rng = np.random.default_rng([8, step])
        torch.manual_seed(7_000 + step)
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 100))
        parts = (
            renders.draw(BATCH_RENDERS, RENDERS_ALTERED, rng),
            generated.draw(BATCH_SAMPLES, SAMPLES_ALTERED, rng),
        )
        ids, maps = torch.cat([p.ids for p in parts]), torch.cat([p.maps for p in parts])
        logits = network(torch.cat([p.images for p in parts]), ids)
        loss = F.binary_cross_entropy_with_logits(logits, torch.cat([p.strict for p in parts]))
        scene, cells, words = captured["hidden"].split((1, MAP_SIZE**2, ids.shape[1]), dim=1)
        map_logits = map_head(cells).transpose(1, 2).unflatten(2, (MAP_SIZE, MAP_SIZE))
        dense = alignment_loss(map_logits, maps[:, 0], maps[:, 1])
        nouns = words[torch.arange(len(ids))[:, None], noun_positions(tokenizer, ids)]
        fact_logits = torch.cat([noun_head(nouns).flatten(1), scene_head(scene[:, 0])], dim=1)
        labels = [torch.cat([p.noun_facts.flatten(1), p.scene_facts], dim=1) for p in parts]
        facts = fact_loss(fact_logits, torch.cat(labels))
        (loss + DENSE * dense + FACTS * facts).backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.item(), dense.item(), facts.item()))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            mean = np.mean(losses[-SAVE_EVERY:], axis=0)
            log_line(
                work / "preference.jsonl",
                step=step + 1,
                loss=float(mean[0]),
                dense=float(mean[1]),
                facts=float(mean[2]),
                within_final=_within_prompt(network, tokenizer, samples, -1),
                within_half=_within_prompt(network, tokenizer, samples, HALF_WAY),
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
    network: PreferenceNetwork, tokenizer: CLIPTokenizer, samples: Samples, preview: int
) -> float:
    """Correlation of prediction and score over the two seeds of each held-out prompt (a chunk's halves)."""
    network.eval()
    images = samples.previews[-HELD_OUT:, preview]
    ids, strict = token_ids(tokenizer, samples.captions[-HELD_OUT:]), samples.strict[-HELD_OUT:]
    parts = zip(_to_tensor(images).split(64), ids.split(64), strict=True)
    predicted = torch.cat([network(image, tokens)[:, 0].sigmoid() for image, tokens in parts]).numpy()
    network.train()
    half = HELD_OUT // 2
    return float(np.corrcoef(predicted[:half] - predicted[half:], strict[:half] - strict[half:])[0, 1])
