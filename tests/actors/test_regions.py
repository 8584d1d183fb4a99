"""Where RegionRefine looks: each region against a closed form, and all of them through one soft mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig, Episode
from actors.errors import UserError
from actors.regions import gaussian_blur, region_mask
from tests.actors.fakes import OracleBackbone

PLAIN = EngineConfig(actions=("continue", "stop", "restart", "refine"), max_nfe=99)


def reach(engine: Engine, *episodes: Episode) -> None:
    while any(episode.state == "denoising" for episode in episodes):
        engine.denoise(episodes)


def deciding(backbone: OracleBackbone | None = None, **options: Any) -> tuple[Engine, Episode]:
    engine = Engine(backbone or OracleBackbone(), replace(PLAIN, **options))
    (episode,) = engine.begin([EpisodeRequest("owl", 3)])
    reach(engine, episode)
    return engine, episode


def take(engine: Engine, episode: Episode, *names: str) -> None:
    for name in names:
        engine.act(episode, engine.action_names.index(name))
        reach(engine, episode)


def may_refine(engine: Engine, episode: Episode) -> bool:
    return bool(engine.legal([episode])[0, engine.action_names.index("refine")])


def chosen(episode: Episode) -> torch.Tensor:
    """What is denoised again, before the blur."""
    assert episode.region is not None
    return episode.region.choose(episode)


def mask_of(episode: Episode) -> torch.Tensor:
    assert episode.region is not None
    return region_mask(episode.region, episode)


def masks_of_refinements(engine: Engine, episode: Episode, count: int) -> list[torch.Tensor]:
    """The masks of so many refinements in turn."""
    masks = []
    for _ in range(count):
        engine.act(episode, engine.action_names.index("refine"))
        assert episode.refinement is not None
        masks.append(episode.refinement.mask_1HW[0])
        reach(engine, episode)
    return masks


# The soft mask


@pytest.mark.parametrize("shape", [(16, 16), (24, 32), (64, 64)])
@pytest.mark.parametrize("sigma", [0.75, 1.5, 3.0])
def test_blur_equals_scipys_mirrored_gaussian(shape: tuple[int, int], sigma: float) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gaussian_filter(image.numpy(), sigma, mode="mirror", radius=int(np.ceil(7 / 3 * sigma)))
    np.testing.assert_allclose(gaussian_blur(image, sigma).numpy(), expected, atol=1e-12)


def test_blur_leaves_a_constant_mask_as_it_is() -> None:
    for value in (0.0, 0.3, 1.0):
        constant = torch.full((32, 32), value)
        torch.testing.assert_close(gaussian_blur(constant, 1.5), constant)


# Attention


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_attention_covers_what_is_below_the_threshold_however_much_that_is(share: float) -> None:
    attention = torch.ones(20, 20)
    attention[:, : round(20 * share)] = 0.2
    _, episode = deciding(OracleBackbone(attention_HW=attention))
    assert float(mask_of(episode).mean()) == pytest.approx(share, abs=0.04)
    assert float(mask_of(episode)[:, -1].max()) < 0.5


def test_attention_mask_is_the_same_at_the_border_as_inside() -> None:
    attention = torch.ones(16, 16)
    attention[:, :8] = 0.1
    mask = mask_of(deciding(OracleBackbone(attention_HW=attention))[1])
    torch.testing.assert_close(mask[0], mask[8])
    torch.testing.assert_close(mask[:, 0], torch.ones(16))


def test_attention_is_taken_relative_to_its_maximum() -> None:
    attention = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    masks = [mask_of(deciding(OracleBackbone(attention_HW=a))[1]) for a in (attention, 1e-4 * attention)]
    torch.testing.assert_close(*masks)
    assert 0.0 < float(masks[0].mean()) < 1.0


def test_no_words_mask_the_whole_image() -> None:
    _, episode = deciding(OracleBackbone(attention_HW=torch.zeros(8, 8)))
    assert torch.equal(mask_of(episode), torch.ones(16, 16))


def test_a_higher_threshold_covers_more() -> None:
    attention = torch.linspace(0.0, 1.0, 16).expand(16, 16)
    means = [
        float(mask_of(deciding(OracleBackbone(attention_HW=attention), refine_threshold=t)[1]).mean())
        for t in (0.2, 0.5, 0.8)
    ]
    assert means == pytest.approx([0.2, 0.5, 0.8], abs=0.03)


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({}, True),
        ({"actions": ("continue", "stop")}, False),
        ({"refine_region": "grid"}, False),
        ({"refine_region": "random"}, False),
        ({"refine_region": "change"}, False),
    ],
)
def test_attention_is_recorded_only_where_a_refinement_goes_by_it(
    options: dict[str, Any], recorded: bool
) -> None:
    class Asked(OracleBackbone):
        asked = False

        def denoise(self, *args: Any, attention: bool = False, **kwargs: Any) -> Any:
            self.asked = self.asked or attention
            return super().denoise(*args, attention=attention, **kwargs)

    backbone = Asked()
    engine, episode = deciding(backbone, **options)
    take(engine, episode, "continue", *(["refine"] if "refine" in engine.action_names else []))
    assert backbone.asked == recorded


def test_refine_is_illegal_without_attention_to_go_by() -> None:
    class Blind(OracleBackbone):
        def denoise(self, *args: Any, attention: bool = False, **kwargs: Any) -> Any:
            return super().denoise(*args, attention=False, **kwargs)

    assert not may_refine(*deciding(Blind()))
    assert may_refine(*deciding(Blind(), refine_region="random"))


# Grid and random: controls that know nothing


def cells_of(region_HW: torch.Tensor, cells: int) -> list[int]:
    """The cells that are covered, each wholly or not at all; in reading order."""
    side = region_HW.shape[0] // cells
    tiles = region_HW.unfold(0, side, side).unfold(1, side, side).flatten(2)
    assert bool((tiles.amax(dim=2) == tiles.amin(dim=2)).all())
    return torch.nonzero(tiles.amax(dim=2).flatten()).flatten().tolist()


def test_grid_sweeps_the_image_and_starts_again() -> None:
    engine, episode = deciding(refine_region="grid", refine_grid=4, refine_share=0.375, warmup_steps=0)
    swept = []
    for _ in range(3):
        swept.append(cells_of(chosen(episode), 4))
        take(engine, episode, "refine")
    assert swept == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0, 1, 12, 13, 14, 15]]


def test_grid_goes_on_after_other_actions_and_a_restart() -> None:
    engine, episode = deciding(refine_region="grid", refine_grid=2, refine_share=0.25, warmup_steps=0)
    take(engine, episode, "refine", "continue", "restart", "continue")
    assert cells_of(chosen(episode), 2) == [1]


def test_cells_that_do_not_divide_the_image_cover_each_position_once() -> None:
    engine, episode = deciding(refine_region="grid", refine_grid=3, refine_share=1 / 9, warmup_steps=0)
    total = torch.zeros(16, 16)
    sizes: set[int] = set()
    for _ in range(9):
        region = chosen(episode)
        total = total + region
        sizes.add(int(region.sum()))
        take(engine, episode, "refine")
    assert torch.equal(total, torch.ones(16, 16))
    assert sizes == {25, 30, 36}


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_random_draws_different_cells_of_the_share(share: float, count: int) -> None:
    _, episode = deciding(refine_region="random", refine_share=share)
    assert len(cells_of(chosen(episode), 4)) == count


def test_random_draws_every_cell_equally_often() -> None:
    _, episode = deciding(refine_region="random", refine_share=0.25)
    mean = torch.stack([chosen(episode) for _ in range(2000)]).mean(dim=0)
    assert float((mean - 0.25).abs().max()) < 0.05  # five standard errors


@pytest.mark.parametrize("region", ["grid", "random", "change"])
def test_a_region_does_not_depend_on_the_batch_beside_it(region: str) -> None:
    """Alone, or beside three others that are at other points and refine in between."""
    options: dict[str, Any] = {"refine_region": region, "warmup_steps": 1}
    engine, alone = deciding(**options)
    expected: list[torch.Tensor] = []
    for _ in range(3):
        expected += masks_of_refinements(engine, alone, 1)
        take(engine, alone, "continue")
    engine, _ = deciding(**options)
    others = engine.begin([EpisodeRequest(f"fox {seed}", seed) for seed in range(3)])
    reach(engine, *others)
    (episode,) = engine.begin([EpisodeRequest("owl", 3)])
    seen = []
    for other in others:
        engine.act(other, engine.action_names.index("refine"))
        engine.denoise([episode, *others])
        reach(engine, episode, *others)
        engine.act(episode, engine.action_names.index("refine"))
        assert episode.refinement is not None
        seen.append(episode.refinement.mask_1HW[0])
        reach(engine, episode, *others)
        engine.act(episode, engine.action_names.index("continue"))
        reach(engine, episode, *others)
    for mask, other_mask in zip(seen, expected, strict=True):
        torch.testing.assert_close(mask, other_mask)


def test_fresh_noise_is_the_same_whatever_the_region() -> None:
    """Regions are compared on the same noise."""
    noises = []
    for region in ("attention", "grid", "random", "change"):
        engine, episode = deciding(refine_region=region)
        engine.act(episode, engine.action_names.index("refine"))
        assert episode.refinement is not None
        noises.append(episode.refinement.fresh_noise_CHW)
    assert all(torch.equal(noise, noises[0]) for noise in noises)


# Change


def moved(episode: Episode, rows: slice, columns: slice, by: float = 1.0) -> None:
    """Pretend that the last prediction was another one there."""
    assert episode.history is not None
    before = episode.clean_CHW.clone()
    before[:, rows, columns] -= by
    episode.history = (before, episode.history[1])


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_change_finds_the_part_that_moved(solver: str) -> None:
    _, episode = deciding(refine_region="change", solver=solver)
    moved(episode, slice(4, 12), slice(8, 16))
    expected = torch.zeros(16, 16)
    expected[4:12, 8:16] = 1.0
    overlap = (mask_of(episode) > 0.5) & (expected > 0.5)
    assert int(overlap.sum()) >= 60  # of 64: the corners are rounded
    assert int((mask_of(episode) > 0.5).sum()) <= 68
    assert float(mask_of(episode)[:, :4].max()) == 0.0


def test_change_takes_more_than_the_largest_where_the_threshold_is_higher() -> None:
    _, episode = deciding(refine_region="change", refine_threshold=0.5)
    moved(episode, slice(0, 16), slice(0, 8), by=1.0)
    moved_half = episode.history
    assert moved_half is not None
    moved_half[0][:, :, 8:] -= 0.3
    assert float(chosen(episode)[:, 12:].max()) == 0.0
    _, low = deciding(refine_region="change", refine_threshold=0.9)
    low.history = moved_half
    assert torch.equal(chosen(low), torch.ones(16, 16))


def test_what_no_longer_changes_is_left_alone() -> None:
    _, episode = deciding(refine_region="change")
    moved(episode, slice(0, 0), slice(0, 0))
    assert torch.equal(mask_of(episode), torch.zeros(16, 16))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_change_needs_an_earlier_prediction(solver: str) -> None:
    engine, episode = deciding(refine_region="change", solver=solver, warmup_steps=0)
    assert not may_refine(engine, episode)
    take(engine, episode, "continue")
    assert may_refine(engine, episode)
    take(engine, episode, "refine")
    assert not may_refine(engine, episode)
    take(engine, episode, "continue")
    assert may_refine(engine, episode)
    take(engine, episode, "restart")
    assert not may_refine(engine, episode)


def test_change_compares_with_the_last_schedule_point() -> None:
    backbone = OracleBackbone(poison=lambda prediction: prediction * 1.01)
    engine, episode = deciding(backbone, refine_region="change", solver="ddim")
    before = episode.clean_CHW
    take(engine, episode, "continue")
    assert episode.history is not None
    assert torch.equal(episode.history[0], before)
    assert not torch.equal(episode.clean_CHW, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"refine_region": "centre"},
            "refine_region is 'centre'; accepted: attention, grid, random, change,",
        ),
        ({"refine_grid": 0}, "engine.refine_grid is 0; accepted: a whole number from 1"),
        ({"refine_share": 0.0}, "engine.refine_share is 0.0; accepted: a number above 0 and up to 1"),
        (
            {"refine_region": "learned"},
            "engine.refine_head is None; accepted: with engine.refine_region=learned a file",
        ),
        (
            {"refine_region": "grid", "refine_grid": 17},
            "engine.refine_grid is 17; accepted with this backbone: a whole number up to 16",
        ),
        (
            {"refine_region": "learned", "refine_head": "nowhere"},
            "engine.refine_head is 'nowhere', which is no file; accepted: a file that `python -m",
        ),
    ],
)
def test_impossible_regions_are_one_line_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Engine(OracleBackbone(), replace(PLAIN, **options))
    assert "\n" not in str(error.value)
