"""Budget control: real training meets its target; what cannot be met is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engine import EngineConfig
from actors.errors import UserError
from learner.budget import Budget, check_target
from learner.json_lines import read_rows
from learner.train import train
from rewards_service.arithmetic import RewardConfig
from tests.learner.smooth import TAUS, best_nfe, smooth_config, smooth_world


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("target", [5.0, 8.0])
def test_training_meets_a_mean_nfe_within_five_percent(tmp_path: Path, target: float) -> None:
    reward = RewardConfig(c_nfe=0.02, target_nfe=target)
    config = smooth_config(tmp_path, "smooth", reward, iterations=60)
    rows = read_rows(train(config, world=smooth_world).run_dir / "progress.jsonl")[-20:]
    assert np.mean([row["nfe"] for row in rows]) == pytest.approx(target, rel=0.05)
    assert all(row["budget"]["target"] == target for row in rows)
    assert "warning" not in rows[-1]["budget"]
    # The price is what it should be: at it, the closed form's best policies spend about as much.
    price = np.exp(np.mean([np.log(row["c_nfe"]) for row in rows]))
    assert np.mean([best_nfe(tau, price) for tau in TAUS]) == pytest.approx(target, rel=0.3)


def row(nfe: float, quality: float = 0.0) -> dict[str, Any]:
    return {"episodes": 64, "nfe": nfe, "quality_over_reference": quality}


def test_the_price_is_moved_by_what_the_wish_is_about() -> None:
    for wish, rows in (
        ({"target_nfe": 9.0}, (row(12.0), row(6.0))),
        ({"quality_floor": -0.1}, (row(9.0, 0.2), row(9.0, -0.4))),
    ):
        reward = RewardConfig(c_nfe=0.02, **wish)  # type: ignore[arg-type]
        room, none = (Budget(reward).steer(each, reward).c_nfe for each in rows)
        assert none < 0.02 < room
        assert all(each["budget"]["target"] == next(iter(wish.values())) for each in rows)


def test_without_a_wish_or_without_episodes_nothing_moves() -> None:
    fixed = RewardConfig(c_nfe=0.02)
    told = row(12.0)
    assert Budget(fixed).steer(told, fixed) is fixed
    assert "budget" not in told
    assert Budget(fixed).state() is None
    wished = replace(fixed, target_nfe=9.0)
    assert Budget(wished).steer({"episodes": 0}, wished) is wished


def test_a_wish_out_of_reach_is_said_in_the_row() -> None:
    reward = RewardConfig(c_nfe=0.02, target_nfe=4.0)
    budget, warnings = Budget(reward), []
    for _ in range(60):
        told = row(6.0)
        reward = budget.steer(told, reward)
        warnings.append(told["budget"].get("warning"))
    assert warnings[:10] == [None] * 10
    assert warnings[-1].startswith(
        "reward.target_nfe=4 seems out of reach: the mean is 6 and comes no nearer"
    )


def test_a_mean_that_no_episode_can_have_is_refused() -> None:
    engine = EngineConfig(num_steps=10, warmup_steps=3, max_nfe=20)
    for target in (4.0, 20.0, None):
        check_target(RewardConfig(target_nfe=target), engine)
    for target in (3.9, 20.1):
        with pytest.raises(UserError, match=rf"reward.target_nfe={target}: give a number from 4 .* to 20"):
            check_target(RewardConfig(target_nfe=target), engine)
