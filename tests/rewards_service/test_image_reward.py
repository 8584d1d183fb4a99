"""The public ImageReward model in batches, against the package's own one-image `score`.

The published sizes take gigabytes, so the package builds a narrow one here, with random weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rewards_service.scorers.image_reward import ImageRewardScorer, import_package
from tests.rewards_service.reward_models import small_blip, write_image_reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint and its med_config.json, for a package that builds small networks without downloads."""
    made = tmp_path_factory.mktemp("image_reward")
    with small_blip(made):
        write_image_reward(made)
        yield made


@pytest.fixture(scope="module")
def one_by_one(folder: Path, pictures: NDArray[np.uint8], captions: list[str]) -> NDArray[np.float64]:
    package = import_package()
    model = package.load(str(folder / "reward.pt"), device="cpu", med_config=str(folder / "med_config.json"))
    scores = [
        model.score(caption, Image.fromarray(image))
        for image, caption in zip(pictures, captions, strict=True)
    ]
    return np.array(scores)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_batches_score_as_the_package_does_one_by_one(
    folder: Path,
    pictures: NDArray[np.uint8],
    captions: list[str],
    one_by_one: NDArray[np.float64],
    size: int,
) -> None:
    scorer = ImageRewardScorer.load(folder / "reward.pt", folder / "med_config.json")
    order = np.random.default_rng(size).permutation(len(captions))
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        scores = scorer.score(pictures[rows], [captions[row] for row in rows])
        np.testing.assert_allclose(scores["image_reward"], one_by_one[rows], atol=1e-4)
        np.testing.assert_array_equal(scores["image_reward_now"], scores["image_reward"])
    assert one_by_one.std() > 0.01


def test_pictures_that_are_no_squares_are_cut_as_the_package_cuts_them(
    folder: Path, captions: list[str]
) -> None:
    package = import_package()
    model = package.load(str(folder / "reward.pt"), device="cpu", med_config=str(folder / "med_config.json"))
    scorer = ImageRewardScorer.load(folder / "reward.pt", folder / "med_config.json")
    for shape in ((100, 137, 3), (331, 230, 3)):
        image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        expected = model.score(captions[0], Image.fromarray(image))
        (score,) = scorer.score(image[None], captions[:1])["image_reward"]
        assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_moves_a_score_by_little_of_what_sets_pictures_apart(
    folder: Path,
    pictures: NDArray[np.uint8],
    captions: list[str],
    one_by_one: NDArray[np.float64],
    dtype: torch.dtype,
) -> None:
    files = (folder / "reward.pt", folder / "med_config.json")
    scores = ImageRewardScorer.load(*files, dtype=dtype).score(pictures[:8], captions[:8])
    assert np.abs(scores["image_reward"] - one_by_one[:8]).max() < 0.1 * one_by_one.std()


def test_a_checkpoint_without_all_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    """The package's own `load` would leave the head random."""
    weights = torch.load(folder / "reward.pt", weights_only=True)
    torch.save(
        {name: value for name, value in weights.items() if not name.startswith("mlp.")}, tmp_path / "half.pt"
    )
    with pytest.raises(ValueError, match=r"no 'mlp\.layers\.0\.weight' in it; accepted: weights of"):
        ImageRewardScorer.load(tmp_path / "half.pt", folder / "med_config.json")
