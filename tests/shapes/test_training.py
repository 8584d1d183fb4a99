"""The recipe's own parts: what is learned from must be right, and an interruption must change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shapes.captions import TIERS, canonical, parse, sample_caption, split_of
from shapes.render import place, render
from shapes.tokenizer import build_tokenizer
from shapes.training import scenes, vae
from shapes.training.captions import altered, mirrored
from shapes.training.facts import fact_labels, fact_loss
from shapes.training.optimizer import MuonAdamW, orthogonalised
from shapes.training.preference import own_and_other
from shapes.training.text import ABSENT, END_CLASSES, NOUN_CLASSES, reading
from shapes.verify import strict_score, verify


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalised_keeps_singular_vectors_and_flattens_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    in_basis = left.T @ orthogonalised(matrix) @ right.T
    assert torch.allclose(in_basis, torch.diag(in_basis.diagonal()), atol=1e-4)
    assert in_basis.diagonal().min() > 0.5
    assert in_basis.diagonal().max() < 1.3


def test_optimizer_solves_least_squares_for_matrix_and_bias() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, truth = torch.randn(256, 6, generator=generator), torch.randn(3, 6, generator=generator)
    layer = torch.nn.Linear(6, 3)
    optimizer = MuonAdamW(layer.parameters(), [], lr=0.05, weight_decay=0.0)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 400)
        loss = (layer(inputs) - inputs @ truth.T - 2.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(layer.weight, truth, atol=0.02)
    assert torch.allclose(layer.bias, torch.full((3,), 2.0), atol=0.02)


@pytest.mark.parametrize("tier", TIERS)
def test_altered_captions_are_other_scenes_and_score_lower(tier: int) -> None:
    rng = np.random.default_rng(tier)
    right, wrong = [], []
    for _ in range(40):
        caption = sample_caption(rng, tier, "train")
        other = altered(caption, rng)
        spec = parse(caption)
        objects = place(spec, rng)
        assert canonical(parse(other)) != canonical(spec) or other != caption
        if objects is None:
            continue
        image = render(objects, spec.texture, rng)
        right.append(strict_score(image, caption))
        wrong.append(strict_score(image, other))
    assert np.mean(right) > 0.98
    assert np.mean(wrong) < 0.9


def test_no_caption_is_altered_into_a_held_out_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        caption = sample_caption(rng, int(rng.integers(1, 5)), "train")
        assert split_of(altered(caption, rng)) == "train"


@pytest.mark.parametrize("tier", TIERS)
def test_a_mirrored_picture_scores_for_the_mirrored_caption_as_it_did(tier: int) -> None:
    rng = np.random.default_rng(tier)
    for _ in range(15):
        caption = sample_caption(rng, tier, "train")
        spec = parse(caption)
        objects = place(spec, rng)
        if objects is None:
            continue
        image = render(objects, spec.texture, rng)
        judged = altered(caption, rng) if rng.random() < 0.5 else caption
        flipped = np.ascontiguousarray(image[:, ::-1])
        assert strict_score(flipped, mirrored(judged)) == strict_score(image, judged)


def test_fact_labels_stand_at_the_words_that_claim_them() -> None:
    caption = "a small red circle left of a blue square on a dotted background"
    spec = parse(caption)
    rng = np.random.default_rng(0)
    objects = place(spec, rng)
    assert objects is not None
    image = render(objects, spec.texture, rng)
    nouns, scene = fact_labels(caption, verify(image, caption))
    assert nouns[:2].tolist() == [[1.0, pytest.approx(np.nan, nan_ok=True)], [1.0, 1.0]]
    assert np.isnan(nouns[2:]).all()
    assert scene.tolist() == [1.0, 1.0]
    wrong = "a large red circle right of a blue square on a plain background"
    nouns, scene = fact_labels(wrong, verify(image, wrong))
    assert nouns[0, 0] == 0.5, "it is there, but not large"
    assert nouns[1, 1] == 0.0, "it is left"
    assert scene.tolist() == [1.0, 0.0], "the background is dotted"


def test_a_preview_is_labelled_by_what_it_becomes_and_by_what_it_is(tmp_path: Path) -> None:
    caption = "a small red circle left of a blue square on a dotted background"
    spec, rng = parse(caption), np.random.default_rng(0)
    objects = place(spec, rng)
    assert objects is not None
    finished = render(objects, spec.texture, rng)
    views = np.stack([np.full_like(finished, 128), finished])[None]
    own, other = own_and_other(build_tokenizer(tmp_path), views, [caption], rng)
    assert own.strict[0].tolist() == [[1.0, 1.0], [0.0, 1.0]], "forecast, then now, of both views"
    assert other.strict[0, 0, 0] == other.strict[0, 0, 1] == other.strict[0, 1, 1] < 1.0
    assert other.strict[0, 1, 0] == 0.0


def test_facts_that_are_not_claimed_do_not_count() -> None:
    logits, nothing = torch.tensor([[0.0, 50.0]]), float("nan")
    assert fact_loss(logits, torch.tensor([[1.0, nothing]])).item() == pytest.approx(np.log(2))


def test_reading_names_attributes_where_a_causal_encoder_can_know_them() -> None:
    nouns, end = reading(parse("a small red circle left of a blue square on a dotted background"))
    assert len(nouns) == 2
    assert nouns[0][4] == 0, "the first noun cannot know the relation that follows it"
    assert nouns[1][4] != 0
    assert nouns[0][2] != nouns[1][2] == 0
    assert len(end) == len(END_CLASSES)
    assert end[2 * len(NOUN_CLASSES)] == ABSENT
    for value, classes in zip(end, END_CLASSES, strict=True):
        assert value == ABSENT or 0 <= value < classes


def test_object_maps_mark_the_cells_where_the_picture_is_coloured() -> None:
    rng = np.random.default_rng(3)
    spec = parse("a large red square on a plain background")
    objects = place(spec, rng)
    assert objects is not None
    image = render(objects, spec.texture, rng).astype(float)
    shape_map, color_map = scenes.object_maps(objects)
    redness = (image[..., 0] - image[..., 1]).reshape(8, 8, 8, 8).mean((1, 3))
    assert (color_map > 0).any()
    assert ((color_map > 0) == (shape_map > 0)).all()
    assert redness[color_map > 0].min() > redness[color_map == 0].mean()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "CHUNK", 48)
    monkeypatch.setattr(vae, "CHUNKS", range(1))
    monkeypatch.setattr(vae, "SAVE_EVERY", 2)


@pytest.mark.usefixtures("small_chunks")
def test_scenes_hold_training_captions_only_and_come_out_the_same(tmp_path: Path) -> None:
    first = scenes.load_scenes(tmp_path / "a", range(2))
    second = scenes.load_scenes(tmp_path / "b", range(2))
    assert {split_of(caption) for caption in first.captions} == {"train"}
    assert first.captions == second.captions
    assert np.array_equal(first.images, second.images)
    assert len(first) == 96


@pytest.mark.usefixtures("small_chunks")
def test_interrupted_autoencoder_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vae.train_vae(tmp_path / "whole", steps=4)
    interrupted = tmp_path / "interrupted"

    with monkeypatch.context() as patch:
        patch.setattr(vae, "reconstruction_loss", _fails_after(3, vae.reconstruction_loss))
        with pytest.raises(KeyboardInterrupt):
            vae.train_vae(interrupted, steps=4)
    assert not (interrupted / "vae").exists()
    resumed = vae.train_vae(interrupted, steps=4)
    for expected, got in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, got)


def _fails_after(calls: int, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    count = 0

    def wrapped(*args: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        return function(*args)

    return wrapped
