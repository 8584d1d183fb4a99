"""One rollout for all thresholds gives what a rollout of each threshold gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.errors import UserError
from actors.rollout import rollout
from evaluation.methods import read_policy
from evaluation.stopping import NEVER, THRESHOLDS, calibration_requests, measure_stopping
from shapes.captions import split_of
from tests.evaluation.fakes import ENGINE, open_fake_bench, saved_policy

GRID = (0.9, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_images_of_all_thresholds_are_those_of_their_own_rollouts(tmp_path: Path, seed: int) -> None:
    policy = read_policy(saved_policy(tmp_path / "policy", seed), greedy=True, seed=0)
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {index}\n" for index in range(12)))
    requests = calibration_requests(str(tmp_path / "prompts.txt"), limit=12, seeds=2, seed=0)
    bench = open_fake_bench()
    table = measure_stopping(bench, policy, requests, seeds=2, slots=3, thresholds=GRID)
    for index, threshold in enumerate((NEVER, *GRID)):
        trained = replace(policy.trained, stop_threshold=threshold)
        opened = replace(policy, trained=trained).open(bench)
        episodes = rollout(
            opened.engine, opened.decider, opened.observer, requests, slots=5, scorer=opened.scorer
        )
        images = bench.backbone.decode(torch.stack([episode.latents_CHW for episode in episodes]))
        qualities = bench.judge(images, [request.prompt for request in requests])
        np.testing.assert_allclose(table.quality_PSK[..., index].ravel(), qualities, atol=0.005)
        assert table.nfe_PSK[..., index].ravel().tolist() == [episode.nfe for episode in episodes]
        assert table.cost_PSK[..., index].ravel() == pytest.approx([episode.cost for episode in episodes])
    spent = table.means("nfe")
    assert (np.diff(spent) <= 0).all(), "a lower threshold never goes on for longer"
    assert spent[-1] < spent[0]


def test_losses_are_means_over_seeds_and_gains_do_not_make_up_for_them(tmp_path: Path) -> None:
    policy = read_policy(saved_policy(tmp_path / "policy"), greedy=True, seed=0)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    requests = calibration_requests(str(tmp_path / "prompts.txt"), limit=2, seeds=2, seed=0)
    table = measure_stopping(open_fake_bench(), policy, requests, seeds=2, slots=4, thresholds=(0.5,))
    made_up = replace(table, quality_PSK=np.array([[[0.5, 0.9], [0.5, 0.3]], [[0.9, 0.0], [0.9, 0.8]]]))
    assert made_up.losses(1.0)[:, 0] == pytest.approx([0.1, 0.5])
    assert made_up.losses(0.4)[:, 0] == pytest.approx([0.25, 0.625])


def test_a_policy_without_stop_has_no_threshold(tmp_path: Path) -> None:
    engine = {**ENGINE.__dict__, "actions": ["continue", "look", "restart", "leap-2", "refine"]}
    policy = read_policy(saved_policy(tmp_path, engine=engine), greedy=True, seed=0)
    with pytest.raises(UserError, match="no stop among its actions"):
        measure_stopping(open_fake_bench(), policy, [], seeds=1, slots=1)


def test_the_grid_goes_from_safe_to_bold() -> None:
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS), reverse=True)
    assert 0.0 < THRESHOLDS[-1] < 0.001 < 0.999 < THRESHOLDS[0] < NEVER


def test_calibration_captions_are_held_out_and_every_tier_gives_what_it_has() -> None:
    requests = calibration_requests(None, limit=120, seeds=1, seed=1)
    assert {split_of(request.prompt) for request in requests} == {"validation"}
    tiers = [request.tier for request in requests]
    assert {tier: tiers.count(tier) for tier in set(tiers)} == {"1": 20, "2": 30, "3": 30, "4": 30}
    assert len({request.prompt for request in requests}) == len({request.seed for request in requests}) == 110
