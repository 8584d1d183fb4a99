"""When to stop, from preferences: the pairs, the loss against its closed form, the toy world."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from actors.errors import UserError
from actors.policy import PolicyNetwork, load_policy
from learner.config import RegistryConfig
from learner.json_lines import read_rows
from learner.offline import train_offline
from learner.offline_config import DPOSettings, OfflineConfig
from learner.offline_data import returns_to_go
from learner.preferences import find_pairs, read_choices, read_pairs, write_pairs
from learner.stop_classifier import PairTensors, dpo_loss, stop_or_go
from tests.learner.stored import STOP, aimless, by_network, gather, mean_return, scripted, store, tossing

SHORT = OfflineConfig(
    algorithm="dpo",
    name="dpo",
    iterations=6,
    updates_per_iteration=50,
    minibatch_size=256,
    hidden=(32,),
    lr=5e-3,
    held_out=0.0,
    registry=RegistryConfig(enabled=False),
)


def test_the_gradient_is_the_published_one() -> None:
    """Rafailov et al., 2023: beta * sigmoid(-beta * margin), towards the chosen, off the rejected."""
    chosen = torch.tensor([-0.3, -1.2], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.1, -0.2], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-0.7, -0.6], [-0.5, -0.9]], dtype=torch.float64)
    beta = 0.4
    loss = dpo_loss(chosen, rejected, reference[:, 0], reference[:, 1], beta)
    margin = (chosen - reference[:, 0]) - (rejected - reference[:, 1])
    margins = margin.tolist()
    expected = [math.log1p(math.exp(-beta * each)) for each in margins]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    weight = [beta / (1.0 + math.exp(beta * each)) for each in margins]
    np.testing.assert_allclose(chosen.grad.numpy(), [-each for each in weight], rtol=1e-12)  # type: ignore[union-attr]
    np.testing.assert_allclose(rejected.grad.numpy(), weight, rtol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize(("beta", "share", "reference_stop"), [(0.5, 0.8, 0.3), (1.0, 0.3, 0.6)])
def test_the_optimum_of_two_arms_is_the_known_one(beta: float, share: float, reference_stop: float) -> None:
    """log pi(stop)/pi(go) = log r(stop)/r(go) + logit(share) / beta, whatever the other actions are."""
    torch.manual_seed(0)
    network = PolicyNetwork(1, 3, (8,))
    count = 200
    stops_chosen = torch.arange(count) < share * count
    log_stop, log_go = math.log(reference_stop), math.log(1.0 - reference_stop)
    reference = torch.where(
        stops_chosen[:, None], torch.tensor([log_stop, log_go]), torch.tensor([log_go, log_stop])
    )
    pairs = PairTensors(
        torch.ones(count, 2, 1),
        torch.ones(count, 2, 3, dtype=torch.bool),
        torch.stack([stops_chosen, ~stops_chosen], dim=1),
        reference,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(600):
        loss = pairs.loss(network, 1, beta, torch.arange(count))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        stop, go = stop_or_go(network(torch.ones(1, 1), torch.ones(1, 3, dtype=torch.bool)), 1)[0].tolist()
    expected = log_stop - log_go + math.log(share / (1.0 - share)) / beta
    assert stop - go == pytest.approx(expected, abs=0.02)


def test_returns_are_discounted_sums() -> None:
    columns = {"rewards": [1.0, 2.0, 4.0, 8.0, 1.0], "terminateds": [False, False, True, False, True]}
    np.testing.assert_allclose(returns_to_go(pyarrow.table(columns), 0.5), [3.0, 4.0, 4.0, 8.5, 1.0])


def test_pairs_meet_in_one_state_and_the_better_end_is_chosen(tmp_path: Path) -> None:
    trajectories = gather(tossing, tmp_path, 384, seed=1, seeds=12)
    folder = store(trajectories, tmp_path / "stored")
    choices = read_choices([folder], STOP, 1.0)
    pairs = find_pairs(choices, kind="state", margin=0.05, at_most=4, seed=0)
    path = tmp_path / "pairs.parquet"
    write_pairs(path, [folder], choices, pairs, 0.0)
    rows = read_pairs(path).to_pylist()
    assert len(rows) == len(pairs) > 20
    assert not any(row["held_out"] for row in rows)
    by_seed = {
        (trajectory.training.request.prompt, trajectory.training.request.seed): trajectory
        for trajectory in trajectories
    }
    for row in rows:
        assert row["chosen_seed"] == row["rejected_seed"]
        assert (row["prompt"], row["chosen_seed"]) in by_seed
        np.testing.assert_array_equal(row["chosen_obs"], row["rejected_obs"])
        assert row["chosen_stops"] != row["rejected_stops"]
        assert row["chosen_outcome"] > row["rejected_outcome"] + 0.05
        stop = row["chosen_logp"] if row["chosen_stops"] else row["rejected_logp"]
        assert stop == pytest.approx(math.log(0.5), abs=0.05), "a coin toss, but for rare other actions"
        assert math.exp(row["chosen_logp"]) + math.exp(row["rejected_logp"]) == pytest.approx(1.0, abs=1e-5)
    good = [row["chosen_stops"] for row in rows if row["chosen_obs"][0] > 0]
    bad = [row["chosen_stops"] for row in rows if row["chosen_obs"][0] < 0]
    assert np.mean(good) > 0.9
    assert np.mean(bad) < 0.4


def test_other_noise_is_compared_by_advantage_where_there_was_a_critic(tmp_path: Path) -> None:
    trajectories = gather(aimless, tmp_path, 96, seed=1, seeds=6)
    blind, seeing = (
        store(trajectories, tmp_path / "blind"),
        store(trajectories, tmp_path / "seeing", value=0.25),
    )
    kinds = {}
    for folder in (blind, seeing):
        trajectories_of = read_choices([folder], STOP, 1.0)
        pairs = find_pairs(trajectories_of, kind="prompt", margin=0.05, at_most=4, seed=0)
        kinds[folder.name] = {pair.kind for pair in pairs}
        for pair in pairs:
            if pair.kind == "prompt":
                assert trajectories_of.seed_N[pair.chosen] != trajectories_of.seed_N[pair.rejected]
                expected = trajectories_of.return_N[pair.chosen] - 0.25
                assert pair.chosen_outcome == pytest.approx(expected, abs=1e-6)
    assert "prompt" not in kinds["blind"]
    assert "prompt" in kinds["seeing"]


def test_the_classifier_stops_good_images_and_goes_on_with_bad_ones(tmp_path: Path) -> None:
    """Those it learns from toss a coin, so that nothing but the preferences tells it when to stop."""
    stored = gather(tossing, tmp_path, 768, seed=1, seeds=12)
    folder = store(stored, tmp_path / "stored")
    config = replace(SHORT, runs_dir=str(tmp_path), trajectories=str(folder))
    result = train_offline(config)
    network, metadata = load_policy(result.policy_dir)
    assert metadata["offline"]["algorithm"] == "dpo"
    right = []
    unseen = gather(tossing, tmp_path, 256, seed=2)
    for trajectory in unseen:
        observations_TD = np.stack(trajectory.observations)
        mask_TA = observations_TD[:, -4:] > 0.5
        logits_TA = torch.from_numpy(by_network(network)(observations_TD, mask_TA))
        stops_T = stop_or_go(logits_TA, STOP)[:, 0].exp().numpy() > 0.5
        asked_T = mask_TA[:, STOP] & (mask_TA.sum(axis=1) > 1) & mask_TA[:, 3]
        right += list((stops_T == (observations_TD[:, 0] > 0))[asked_T])
    assert np.mean(right) > 0.9
    learnt = mean_return(gather(by_network(network), tmp_path, 256, seed=3))
    best = mean_return(gather(scripted, tmp_path, 256, seed=3))
    assert learnt > mean_return(unseen) + 0.25 * (best - mean_return(unseen))


def test_what_going_on_means_stays_and_is_measured_apart_from_when_to_stop(tmp_path: Path) -> None:
    """Against a coin toss a sure answer is unlikely half of the time; the other actions are not in it."""
    folder = store(gather(tossing, tmp_path, 512, seed=1, seeds=12), tmp_path / "stored")
    config = replace(SHORT, runs_dir=str(tmp_path), trajectories=str(folder), held_out=0.3, iterations=10)
    result = train_offline(config)
    rows = read_rows(result.run_dir / "progress.jsonl")
    assert not any("held_out_nll" in row for row in rows)
    cloned = rows[2][
        "held_out_others_nll"
    ]  # after the warm-up; in nats, most of it the behaviour's own chance
    assert rows[-1]["held_out_dpo_loss"] < 0.5 * rows[2]["held_out_dpo_loss"], "preferences count"
    assert rows[-1]["held_out_others_nll"] == pytest.approx(cloned, abs=0.1)
    assert rows[-1]["held_out_others_accuracy"] > 0.9


def test_sigterm_is_heard_although_ray_takes_it_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @contextmanager
    def ray(config: OfflineConfig) -> Iterator[None]:
        signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("Ray has ended the process"))
        yield

    monkeypatch.setattr("learner.offline._ray", ray)
    folder = store(gather(tossing, tmp_path, 128, seed=1, seeds=4), tmp_path / "stored")
    config = replace(SHORT, runs_dir=str(tmp_path), trajectories=str(folder))
    try:
        result = train_offline(config, lambda row: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.ended == "interrupted"
    assert load_policy(result.policy_dir)[1]["iteration"] == 1


def test_without_a_pair_nothing_is_learnt_and_it_is_said(tmp_path: Path) -> None:
    folder = store(gather(scripted, tmp_path, 16, seed=1, seeds=1), tmp_path / "stored")
    config = replace(SHORT, runs_dir=str(tmp_path), trajectories=str(folder), dpo=DPOSettings(margin=50.0))
    with pytest.raises(UserError, match="hold no pair"):
        train_offline(config)
    assert not config.run_dir.exists()


def test_a_file_of_pairs_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), path)
    with pytest.raises(UserError, match="schema version none, expected 1"):
        read_pairs(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(path)
