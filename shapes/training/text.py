"""The text encoder, first taught to read: which object is which, before any picture is seen.

A CLIP text encoder is causal, so a noun's token knows its own size, colour and count, and of a relation
only what came before; the end token knows the whole scene. Linear probes on those tokens are trained
with the encoder and thrown away. Started from here, the denoiser's cross-attention finds objects already
bound to their attributes instead of having to learn grammar from noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from shapes.captions import COLORS, RELATIONS, SHAPES, SIZES, TEXTURES, SceneSpec, parse, sample_caption
from shapes.tokenizer import MAX_LENGTH, build_tokenizer
from shapes.training.files import log_line
from shapes.training.optimizer import MuonAdamW, set_learning_rate, warmup_cosine

WIDTH = 96
STEPS = 1200
BATCH = 128
LEARNING_RATE = 2e-3
MAX_GROUPS = 4
NOUN_CLASSES = (len(SHAPES), len(COLORS), 3, 5, 5)
"""Classes of shape, colour, size, count and relation to the noun before."""
END_CLASSES = NOUN_CLASSES * MAX_GROUPS + (len(TEXTURES),)
ABSENT = -100


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder (0.3M parameters)."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            hidden_act="gelu",
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight.normal_(0, 0.3)
        model.text_model.embeddings.position_embedding.weight.normal_(0, 0.1)
    return model


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Padded token ids, int64 [N, 24]."""
    encoded = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True)
    return torch.tensor(encoded.input_ids)


def reading(spec: SceneSpec) -> tuple[list[list[int]], list[int]]:
    """Classes that the noun tokens and the end token are asked for."""
    nouns = []
    for number, group in enumerate(spec.groups):
        links = [r for r in spec.relations if r.object == number]
        relation = 1 + RELATIONS.index(links[0].kind) if links else 0
        nouns.append(
            [
                SHAPES.index(group.spec.shape),
                list(COLORS).index(group.spec.color),
                1 + list(SIZES).index(group.spec.size) if group.spec.size else 0,
                group.count,
                relation,
            ]
        )
    missing = [[ABSENT] * len(NOUN_CLASSES)] * (MAX_GROUPS - len(nouns))
    end = [value for noun in nouns + missing for value in noun]
    return nouns, [*end, TEXTURES.index(spec.texture)]


def reading_loss(logits: torch.Tensor, targets: torch.Tensor, classes: tuple[int, ...]) -> torch.Tensor:
    """Mean cross-entropy over the questions; `ABSENT` targets do not count."""
    parts = logits.split(classes, -1)
    losses = [F.cross_entropy(part, targets[:, k], ignore_index=ABSENT) for k, part in enumerate(parts)]
    return torch.stack([loss for loss in losses if torch.isfinite(loss)]).mean()


def train_text_encoder(work: Path, steps: int = STEPS) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Train the text encoder to read (about two minutes); the result stands in `work/text_encoder`."""
    tokenizer = build_tokenizer(work / "tokenizer")
    folder = work / "text_encoder"
    if (folder / "config.json").exists():
        return tokenizer, CLIPTextModel.from_pretrained(folder, attn_implementation="eager")
    torch.manual_seed(2)
    rng = np.random.default_rng(2)
    shares = (0.1, 0.2, 0.35, 0.35)
    captions = [sample_caption(rng, 1 + int(rng.choice(4, p=shares)), "train") for _ in range(20_000)]
    ids = token_ids(tokenizer, captions)
    readings = [reading(parse(caption)) for caption in captions]
    end_targets = torch.tensor([end for _, end in readings])
    noun_targets = torch.full((len(captions), MAX_GROUPS, len(NOUN_CLASSES)), ABSENT)
    for row, (nouns, _) in enumerate(readings):
        noun_targets[row, : len(nouns)] = torch.tensor(nouns)
    noun_position = noun_positions(tokenizer, ids)
    model = build_text_encoder(tokenizer)
    noun_head, end_head = nn.Linear(WIDTH, sum(NOUN_CLASSES)), nn.Linear(WIDTH, sum(END_CLASSES))
    everything = [*model.parameters(), *noun_head.parameters(), *end_head.parameters()]
    embeddings = model.text_model.embeddings.parameters()
    optimizer = MuonAdamW(everything, embeddings, LEARNING_RATE)
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        set_learning_rate(optimizer, warmup_cosine(step, steps, LEARNING_RATE, 50))
        index = torch.randint(0, len(ids), (BATCH,), generator=generator)
        output = model(ids[index])
        hidden = output.last_hidden_state
        at_nouns = hidden[torch.arange(BATCH)[:, None], noun_position[index]]
        loss = reading_loss(
            noun_head(at_nouns).flatten(0, 1), noun_targets[index].flatten(0, 1), NOUN_CLASSES
        )
        loss = loss + reading_loss(end_head(output.pooler_output), end_targets[index], END_CLASSES)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            log_line(work / "text.jsonl", step=step + 1, loss=loss.item())
    model.save_pretrained(folder)
    return tokenizer, model


def noun_positions(tokenizer: CLIPTokenizer, ids: torch.Tensor) -> torch.Tensor:
    """Token position of the k-th noun of each caption, int64 [N, 4]; 0 where there is none."""
    words = [*SHAPES, *(plural for shape in SHAPES for plural in (shape + "s", shape + "es"))]
    nouns = torch.tensor([i for i in tokenizer.convert_tokens_to_ids([w + "</w>" for w in words]) if i])
    is_noun = torch.isin(ids, nouns[nouns != tokenizer.unk_token_id])
    positions = torch.zeros(len(ids), MAX_GROUPS, dtype=torch.long)
    rows, columns = is_noun.nonzero(as_tuple=True)
    order = is_noun.cumsum(1)[rows, columns] - 1
    positions[rows, order] = columns
    return positions
