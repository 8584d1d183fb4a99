"""HPS v2 and PickScore against their libraries used directly, one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from rewards_service.contracts import Scorer
from rewards_service.scorers.hps import HpsScorer
from rewards_service.scorers.pick_score import PickScorer
from tests.rewards_service.reward_models import HPS_ARCHITECTURE, write_hps, write_pick_score

Images = NDArray[np.uint8]
SIZES = [1, 2, 7, 64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preference")
    write_hps(made)
    write_pick_score(made)
    return made


def wide(count: int) -> Images:
    """Pictures that are no squares."""
    return np.random.default_rng(2).integers(0, 256, (count, 48, 67, 3), dtype=np.uint8)


def assert_scores(
    scorer: Scorer, images: Images, prompts: list[str], expected: list[float], size: int
) -> None:
    """The same in an order of its own, `size` at a time."""
    (name,) = scorer.outputs
    order = np.random.default_rng(size).permutation(len(prompts))
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        scores = scorer.score(images[rows], [prompts[row] for row in rows])[name]
        np.testing.assert_allclose(scores, np.array(expected)[rows], atol=1e-4, rtol=1e-5)
    assert np.std(expected) > 0.01


def hps_alone(folder: Path, images: Images, prompts: list[str]) -> list[float]:
    """open_clip at batch 1; the published transform fits the long side and fills with black."""
    model = open_clip.create_model(HPS_ARCHITECTURE)
    model.load_state_dict(torch.load(folder / "hps.pt", weights_only=True)["state_dict"])
    transform = open_clip.image_transform(32, is_train=False, resize_mode="longest")
    tokenizer = open_clip.get_tokenizer(HPS_ARCHITECTURE)
    scores = []
    with torch.no_grad():
        for image, prompt in zip(images, prompts, strict=True):
            seen = model.eval().encode_image(transform(Image.fromarray(image))[None], normalize=True)
            read = model.encode_text(tokenizer([prompt]), normalize=True)
            scores.append(100 * (seen @ read.T).item())
    return scores


@pytest.mark.parametrize("size", SIZES)
def test_hps_is_a_hundred_times_the_cosine(
    folder: Path, pictures: Images, captions: list[str], size: int
) -> None:
    scorer = HpsScorer.load(folder / "hps.pt", HPS_ARCHITECTURE)
    assert_scores(scorer, pictures, captions, hps_alone(folder, pictures, captions), size)


def test_hps_sees_the_whole_of_a_wide_picture(folder: Path, captions: list[str]) -> None:
    scorer = HpsScorer.load(folder / "hps.pt", HPS_ARCHITECTURE)
    images, prompts = wide(5), captions[:5]
    assert_scores(scorer, images, prompts, hps_alone(folder, images, prompts), 5)


def pick_alone(folder: Path, images: Images, prompts: list[str]) -> list[float]:
    """The model card's own way, with the processor's padding and mask."""
    model = CLIPModel.from_pretrained(str(folder / "pick")).eval()
    processor = CLIPProcessor.from_pretrained(str(folder / "processor"), use_fast=False)
    scores = []
    with torch.no_grad():
        for image, prompt in zip(images, prompts, strict=True):
            seen = model.get_image_features(**processor(images=Image.fromarray(image), return_tensors="pt"))
            text = processor(text=prompt, padding=True, truncation=True, max_length=24, return_tensors="pt")
            read = model.get_text_features(**text)
            seen, read = seen / seen.norm(dim=-1, keepdim=True), read / read.norm(dim=-1, keepdim=True)
            scores.append((model.logit_scale.exp() * (read @ seen.T)).item())
    return scores


@pytest.mark.parametrize("size", SIZES)
def test_pick_score_is_the_scaled_cosine(
    folder: Path, pictures: Images, captions: list[str], size: int
) -> None:
    scorer = PickScorer.load(folder / "pick", folder / "processor")
    assert_scores(scorer, pictures, captions, pick_alone(folder, pictures, captions), size)


def test_pick_score_cuts_a_wide_picture_as_its_processor_does(folder: Path, captions: list[str]) -> None:
    scorer = PickScorer.load(folder / "pick", folder / "processor")
    images, prompts = wide(5), captions[:5]
    assert_scores(scorer, images, prompts, pick_alone(folder, images, prompts), 5)


def test_the_logit_scale_is_not_rounded_to_the_networks_type(
    folder: Path, pictures: Images, captions: list[str]
) -> None:
    """In bfloat16 4.6052 is 4.59375, which would move every score by one in a hundred."""
    half = PickScorer.load(folder / "pick", folder / "processor", dtype=torch.bfloat16)
    assert half.scale == pytest.approx(np.exp(4.6052))
    expected = pick_alone(folder, pictures[:8], captions[:8])
    scores = half.score(pictures[:8], captions[:8])["pick_score"]
    assert np.abs(scores - np.array(expected)).max() < 0.02 * half.scale


def test_a_prompt_is_read_once(folder: Path, pictures: Images, captions: list[str]) -> None:
    for scorer in (
        HpsScorer.load(folder / "hps.pt", HPS_ARCHITECTURE).clip,
        PickScorer.load(folder / "pick", folder / "processor", cached_prompts=4),
    ):
        scorer.score(pictures[:4], [captions[0], captions[1], captions[0], captions[1]])
        scorer.score(pictures[:2], captions[:2])
        assert (scorer.text.misses, scorer.text.hits) == (2, 2)
