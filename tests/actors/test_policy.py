"""Policy networks: masks, first distribution, sampling, and what survives on disk."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import (
    OBSERVATION_LIMIT,
    PolicyDecider,
    PolicyNetwork,
    ValueNetwork,
    load_policy,
    save_policy,
)

DIM, ACTIONS = 12, 4


@pytest.fixture
def network() -> PolicyNetwork:
    torch.manual_seed(0)
    made = PolicyNetwork(DIM, ACTIONS, hidden=(16, 8))
    made.obs_mean.copy_(torch.linspace(-1, 1, DIM))
    made.obs_std.copy_(torch.linspace(0.5, 2, DIM))
    return made


def inputs(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(rows, ACTIONS, generator=generator) > 0.5
    mask[:, 0] = True
    return torch.randn(rows, DIM, generator=generator), mask


def test_illegal_actions_have_no_probability_and_finite_logits(network: PolicyNetwork) -> None:
    observations, mask = inputs()
    logits = network(observations, mask)
    assert logits.isfinite().all()
    probabilities = logits.softmax(dim=1)
    assert (probabilities[~mask] == 0.0).all()
    assert (probabilities[mask] > 0.0).all()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert entropy.isfinite().all()


@torch.no_grad()
def test_first_policy_is_almost_uniform_and_weights_are_orthogonal() -> None:
    network = PolicyNetwork(300, 6)
    observations = torch.randn(50, 300)
    probabilities = network(observations, torch.ones(50, 6, dtype=torch.bool)).softmax(dim=1)
    assert float((probabilities - 1 / 6).abs().max()) < 0.05
    weight = cast(torch.Tensor, network.layers[2].weight)  # 256 x 512, gain sqrt(2)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(256), atol=1e-3, rtol=0)


def test_observations_are_normalised_and_clipped(network: PolicyNetwork) -> None:
    observations, mask = inputs()
    normalised = ((observations - network.obs_mean) / network.obs_std).clamp(
        -OBSERVATION_LIMIT, OBSERVATION_LIMIT
    )
    expected = network.layers(normalised).masked_fill(~mask, -1e9)
    torch.testing.assert_close(network(observations, mask), expected)
    unknown = observations.clone()
    unknown[:, 3] = 0.0
    at_mean = observations.clone()
    at_mean[:, 3] = network.obs_mean[3]
    assert network.obs_mean[3] != 0
    torch.testing.assert_close(network(unknown, mask), network(at_mean, mask))
    far = torch.full((1, DIM), 1e6)
    everything = torch.ones(1, ACTIONS, dtype=torch.bool)
    torch.testing.assert_close(network(far, everything), network(1e3 * far, everything))


def test_a_feature_that_never_varied_gives_no_nan(network: PolicyNetwork) -> None:
    network.obs_std.zero_()
    observations, mask = inputs()
    observations[0] = network.obs_mean
    assert network(observations, mask).isfinite().all()


def test_values_have_one_number_a_row() -> None:
    assert ValueNetwork(7, hidden=(5,))(torch.randn(9, 7)).shape == (9,)


def decider_inputs(network: PolicyNetwork) -> tuple[Observer, np.ndarray, np.ndarray]:
    observer = Observer(ObservationConfig("timestep"), ObservationSizes(1, 1), "abcd")
    observer.policy_dim = DIM
    observations, mask = inputs()
    critic = torch.zeros(len(mask), observer.critic_dim)
    return observer, torch.cat([observations, critic, mask.float()], dim=1).numpy(), mask.numpy()


def test_greedy_takes_the_likeliest_legal_action(network: PolicyNetwork) -> None:
    observer, observations, mask = decider_inputs(network)
    chosen = PolicyDecider(network, observer)([], observations, mask)
    logits = network(torch.from_numpy(observations[:, :DIM]), torch.from_numpy(mask))
    np.testing.assert_array_equal(chosen, logits.argmax(dim=1))
    assert mask[np.arange(len(mask)), chosen].all()


def waiting(count: int, decision: int = 0) -> list[Any]:
    """Episodes that await their decision of this number."""
    return [
        SimpleNamespace(request=EpisodeRequest(f"prompt {index}", index), decisions=[None] * decision)
        for index in range(count)
    ]


def test_what_is_drawn_follows_from_seed_request_and_decision_in_any_batch(network: PolicyNetwork) -> None:
    observer, observations, mask = decider_inputs(network)
    episodes = waiting(len(mask))

    def draw(seed: int, places: list[int], decision: int = 0) -> np.ndarray:
        waits = waiting(len(mask), decision)
        decider = PolicyDecider(network, observer, greedy=False, seed=seed)
        return decider([waits[place] for place in places], observations[places], mask[places])

    everything = list(range(len(episodes)))
    together = draw(0, everything)
    np.testing.assert_array_equal(together, draw(0, everything[::-1])[::-1])
    np.testing.assert_array_equal(together, np.concatenate([draw(0, [place]) for place in everything]))
    others = [draw(1, everything), *(draw(0, everything, decision) for decision in (1, 2))]
    assert len({tuple(drawn) for drawn in (together, *others)}) == 4
    assert all(mask[np.arange(len(mask)), drawn].all() for drawn in (together, *others))


def test_actions_are_drawn_as_often_as_they_are_probable(network: PolicyNetwork) -> None:
    observer, observations, mask = decider_inputs(network)
    place = int(mask.sum(1).argmax())
    decider = PolicyDecider(network, observer, greedy=False)
    drawn = decider(waiting(4_000), observations[[place] * 4_000], mask[[place] * 4_000])
    probabilities = decider.logits(observations[[place]], mask[[place]]).softmax(1)[0].numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4_000, probabilities, atol=0.032)


def test_a_saved_policy_decides_the_same(network: PolicyNetwork, tmp_path: Path) -> None:
    metadata = {"actions": ["continue", "stop"], "backbone": "oracle", "observation": {"policy": "latent"}}
    save_policy(tmp_path / "policy", network, metadata)
    save_policy(tmp_path / "policy", network, metadata)  # over the old one
    loaded, loaded_metadata = load_policy(tmp_path / "policy")
    observations, mask = inputs()
    assert torch.equal(loaded(observations, mask), network(observations, mask))
    assert loaded_metadata == metadata
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "policy.json",
        "policy.safetensors",
    ]


def test_a_save_that_the_disk_does_not_take_leaves_the_old_policy(
    network: PolicyNetwork, tmp_path: Path
) -> None:
    save_policy(tmp_path, network, {"iteration": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_policy(tmp_path, network, {"iteration": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_policy(tmp_path)[1] == {"iteration": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "no header"])
def test_a_damaged_file_is_one_line(network: PolicyNetwork, tmp_path: Path, damage: str) -> None:
    save_policy(tmp_path, network, {})
    path = tmp_path / "policy.safetensors"
    content = path.read_bytes()
    if damage == "no header":
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    else:
        path.write_bytes({"empty": b"", "truncated": content[:-100], "garbage": b"x" * 500}[damage])
    with pytest.raises(
        UserError, match=r"policy file is .* damaged .*; accepted: a file of save_policy"
    ) as error:
        load_policy(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_policy_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy folder is .*nowhere'; accepted: a folder with policy.safe"):
        load_policy(tmp_path / "nowhere")


def stopping_world(network: PolicyNetwork) -> tuple[Observer, np.ndarray, np.ndarray, torch.Tensor]:
    """64 observations of a policy with these four actions, the legal ones, and their probabilities."""
    observer = Observer(ObservationConfig("timestep"), ObservationSizes(1, 1), ACTION_NAMES)
    observer.policy_dim = DIM
    policy_part, mask = inputs()
    mask[::4] = torch.tensor([False, True, True, False])  # the end of the schedule: nowhere to go on to
    critic = torch.zeros(len(mask), observer.critic_dim)
    probabilities = network(policy_part, mask).softmax(dim=1).detach()
    return (
        observer,
        torch.cat([policy_part, critic, mask.float()], dim=1).numpy(),
        mask.numpy(),
        probabilities,
    )


ACTION_NAMES = ("continue", "stop", "look", "leap-2")


def test_a_threshold_decides_about_early_stops_and_about_nothing_else(network: PolicyNetwork) -> None:
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.mul_(100)
    observer, observations, mask, probabilities = stopping_world(network)
    free = PolicyDecider(network, observer)([], observations, mask)
    early = mask[:, 1] & (mask[:, 0] | mask[:, 3])
    assert early.any()
    assert (free[~early & mask[:, 1]] == 1).any(), "at the end, stopping is not early"
    others = np.where(np.arange(4) == 1, -1.0, probabilities.numpy()).argmax(axis=1)
    for threshold in (0.0, 0.1, 0.3, 0.7, 1.0):
        chosen = PolicyDecider(network, observer, stop_threshold=threshold)([], observations, mask)
        stops = early & (probabilities[:, 1].numpy() > threshold)
        np.testing.assert_array_equal(chosen[~early], free[~early])
        np.testing.assert_array_equal(chosen[early], np.where(stops, 1, others)[early])
        if threshold == 1.0:
            assert not stops.any()
            assert (free[early] == 1).any(), "without a threshold some of them stop"


def test_a_threshold_holds_for_drawn_actions_too(network: PolicyNetwork) -> None:
    observer, observations, mask, _ = stopping_world(network)
    early = mask[:, 1] & (mask[:, 0] | mask[:, 3])
    for threshold, stops in ((1.0, False), (0.0, True)):
        decider = PolicyDecider(
            network,
            observer,
            greedy=False,
            stop_threshold=threshold,
        )
        drawn = np.stack([decider(waiting(len(mask), number), observations, mask) for number in range(20)])
        assert (drawn[:, early] == 1).all() == stops
        assert (drawn[:, early] == 1).any() == stops
