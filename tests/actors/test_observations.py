"""Observations: their layout, and where each number comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from actors.contracts import QUALITY_FEATURES, EpisodeRequest
from actors.engine import Engine, EngineConfig, Episode
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer, PolicyView, timestep_embedding
from tests.actors.fakes import OracleBackbone

SIZES = ObservationSizes(feature_dim=OracleBackbone.feature_dim, text_dim=OracleBackbone.text_dim)


@pytest.fixture
def played() -> tuple[Engine, list[Episode]]:
    """Two episodes at a decision; the second has looked, restarted and is at its first point."""
    engine = Engine(OracleBackbone(), EngineConfig(warmup_steps=0, max_attempts=4, max_nfe=20))
    episodes = engine.begin([EpisodeRequest("owl", 1), EpisodeRequest("sky", 2, max_nfe=10)])
    engine.denoise(episodes)
    engine.act(episodes[0], engine.action_names.index("leap-2"))
    engine.act(episodes[1], engine.action_names.index("restart"))
    engine.denoise(episodes)
    engine.act(episodes[1], engine.action_names.index("look"))
    engine.receive_look(episodes[1], {"image_reward": np.float32(0.5)})
    return engine, episodes


def test_seed_state_has_1672_numbers() -> None:
    observer = Observer(ObservationConfig("seed"), SIZES, ("continue", "stop", "look"))
    assert observer.policy_dim == 1672
    assert observer.dim == 1672 + 8 + 3


def test_timestep_embedding_equals_diffusers() -> None:
    timesteps = np.array([0.0, 1.0, 333.0, 999.0])
    expected = get_timestep_embedding(
        torch.tensor(timesteps), 128, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    np.testing.assert_allclose(timestep_embedding(timesteps), expected, atol=1e-4)


def test_latent_view(played: tuple[Engine, list[Episode]]) -> None:
    engine, episodes = played
    observer = Observer(ObservationConfig("latent"), SIZES, engine.action_names)
    critic = np.arange(16, dtype=np.float32).reshape(2, 8)
    mask = engine.legal(episodes)
    observations = observer.observe(episodes, mask, critic)
    assert observations.dtype == np.float32
    assert observations.shape == (2, 6 + 5 + 128 + 8 + 4 + 8 + engine.num_actions)
    for row, episode in enumerate(episodes):
        parts = np.split(observations[row], np.cumsum([6, 5, 128, 8, 4, 8]))
        np.testing.assert_array_equal(parts[0], episode.latents_CHW.flatten()[:6])  # the oracle's features
        np.testing.assert_array_equal(parts[1], episode.conditioning.pooled_BD[0])
        np.testing.assert_array_equal(parts[2], timestep_embedding(np.array([episode.timestep]))[0])
        np.testing.assert_array_equal(parts[3], episode.quality)
        np.testing.assert_array_equal(parts[5], critic[row])
        np.testing.assert_array_equal(parts[6], mask[row])
    progress = observations[:, 6 + 5 + 128 + 8 :][:, :4]
    np.testing.assert_allclose(progress, [[2 / 9, 2 / 20, 1 / 4, 0], [0, 2 / 10, 2 / 4, 1]], rtol=1e-6)


def test_seed_view(played: tuple[Engine, list[Episode]]) -> None:
    engine, episodes = played
    sizes = ObservationSizes(SIZES.feature_dim, SIZES.text_dim, embedding_dim=3)
    observer = Observer(ObservationConfig("seed"), sizes, engine.action_names)
    image, text = np.full((2, 3), 0.25, dtype=np.float32), np.full((2, 3), 0.75, dtype=np.float32)
    embeddings = {"clip_image": image, "clip_text": text}
    observations = observer.observe(episodes, engine.legal(episodes), embeddings=embeddings)
    np.testing.assert_array_equal(observations[:, :3], image)
    np.testing.assert_array_equal(observations[:, 3:6], text)
    np.testing.assert_array_equal(observations[:, 134:142], [episode.quality for episode in episodes])
    assert observer.needs_embeddings
    with pytest.raises(AssertionError, match="clip_image"):
        observer.observe(episodes, engine.legal(episodes))


def test_what_reuse_and_guidance_made_is_seen() -> None:
    actions = ("continue", "reuse", "guidance-2", "guidance-8", "stop")
    engine = Engine(OracleBackbone(), EngineConfig(warmup_steps=1, guidance_scale=4.0, actions=actions))
    plain, changed = engine.begin([EpisodeRequest("owl", 1), EpisodeRequest("sky", 2)])
    while "denoising" in (plain.state, changed.state):
        engine.denoise([plain, changed])
    engine.act(changed, actions.index("guidance-2"))
    engine.act(changed, actions.index("reuse"))
    observer = Observer(ObservationConfig("timestep"), SIZES, actions)
    assert observer.policy_dim == 128 + 4 + 2
    observations = observer.observe([plain, changed], engine.legal([plain, changed]))
    np.testing.assert_array_equal(observations[:, 132:134], [[0.0, 4 / 8], [1.0, 2 / 8]])


def test_what_an_ablation_leaves_out(played: tuple[Engine, list[Episode]]) -> None:
    engine, episodes = played
    mask = engine.legal(episodes)
    sizes = ObservationSizes(SIZES.feature_dim, SIZES.text_dim, embedding_dim=3)
    embeddings = {name: np.ones((2, 3), dtype=np.float32) for name in ("clip_image", "clip_text")}
    quality = np.stack([episode.quality for episode in episodes])
    timesteps = timestep_embedding(np.array([episode.timestep for episode in episodes]))

    def view(**options: Any) -> tuple[Observer, np.ndarray]:
        observer = Observer(ObservationConfig(**options), sizes, engine.action_names)
        return observer, observer.observe(episodes, mask, embeddings=embeddings)[:, : observer.policy_dim]

    without_clip, seen = view(policy="seed", clip=False)
    np.testing.assert_array_equal(seen, np.concatenate([timesteps, quality], axis=1))
    assert without_clip.scores_every_decision, "its quality vector is as live as in training"
    assert not without_clip.needs_embeddings
    assert "clip_image" not in without_clip.look_outputs
    _, seen = view(policy="seed", quality=False)
    np.testing.assert_array_equal(seen, np.concatenate([*embeddings.values(), timesteps], axis=1))
    neither, seen = view(policy="seed", quality=False, clip=False)
    np.testing.assert_array_equal(seen, timesteps)
    assert not neither.scores_every_decision
    whole, seen = view(policy="latent")
    latent, left = view(policy="latent", quality=False)
    assert latent.policy_dim == whole.policy_dim - 8
    np.testing.assert_array_equal(left, np.delete(seen, np.s_[6 + 5 + 128 : 6 + 5 + 128 + 8], axis=1))


@pytest.mark.parametrize("view", ["latent", "seed", "timestep"])
@pytest.mark.parametrize("critic_sees_quality", [True, False])
def test_split_takes_apart_what_observe_made(
    view: PolicyView, critic_sees_quality: bool, played: tuple[Engine, list[Episode]]
) -> None:
    engine, episodes = played
    observer = Observer(ObservationConfig(view, critic_sees_quality), SIZES, engine.action_names)
    critic, mask = np.full((2, 8), 7.0, dtype=np.float32), engine.legal(episodes)
    embeddings = {name: np.ones((2, 768), dtype=np.float32) for name in ("clip_image", "clip_text")}
    observations = torch.from_numpy(observer.observe(episodes, mask, critic, embeddings))
    assert observations.shape == (2, observer.dim)
    policy_BD, critic_BD, mask_BA = observer.split(observations)
    assert policy_BD.shape == (2, observer.policy_dim)
    assert critic_BD.shape == (2, observer.policy_dim + observer.critic_dim)
    assert torch.equal(critic_BD[:, : observer.policy_dim], policy_BD)
    assert observer.critic_dim == (8 if critic_sees_quality else 0)
    assert (critic_BD[:, observer.policy_dim :] == 7.0).all()
    assert mask_BA.dtype == torch.bool
    np.testing.assert_array_equal(mask_BA.numpy(), mask)


def test_critic_part_is_zero_where_nobody_scored(played: tuple[Engine, list[Episode]]) -> None:
    engine, episodes = played
    observer = Observer(ObservationConfig("timestep"), SIZES, engine.action_names)
    observations = torch.from_numpy(observer.observe(episodes, engine.legal(episodes)))
    _, critic_BD, _ = observer.split(observations)
    assert not critic_BD[:, observer.policy_dim :].any()


def test_unknown_view_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"observation.policy is 'all'; accepted: latent, seed, timestep"):
        ObservationConfig("all")  # type: ignore[arg-type]


@pytest.mark.parametrize("scores", [(), ("clip_score",), ("image_reward", "beauty")])
def test_a_look_without_image_reward_or_with_an_unknown_score_is_a_user_error(
    scores: tuple[str, ...],
) -> None:
    with pytest.raises(
        UserError, match=r"observation.look_scores is \[.*\]; accepted: image_reward, and any"
    ):
        ObservationConfig(look_scores=scores)


def test_statistics_that_references_cannot_know_are_completed() -> None:
    observer = Observer(
        ObservationConfig("latent", True), ObservationSizes(2, 3), ("continue", "stop", "look", "restart")
    )
    quality, progress = observer.policy_dim - 12, observer.policy_dim - 4
    width = observer.policy_dim + observer.critic_dim
    mean_D = np.arange(width, dtype=np.float32)
    std_D = np.ones(width, dtype=np.float32)
    mean, std = observer.complete_statistics(mean_D, std_D)
    untouched = list(range(quality))
    np.testing.assert_array_equal(mean[untouched], mean_D[untouched])
    image_reward = QUALITY_FEATURES.index("image_reward")
    assert mean[quality + image_reward] == mean_D[observer.policy_dim + image_reward]
    uniform = np.random.default_rng(0).random(100_000)
    for offset in range(4):
        assert mean[progress + offset] == pytest.approx(uniform.mean(), abs=0.01)
    np.testing.assert_array_equal(mean_D, np.arange(width))
    blocks = np.split(std[: observer.policy_dim], np.cumsum([2, 3, 128, 8]))
    measured = [np.r_[[1.0] * len(block)] for block in blocks]
    measured[4][:] = uniform.std()
    measured[3][[QUALITY_FEATURES.index("step_ratio"), QUALITY_FEATURES.index("nfe_ratio")]] = uniform.std()
    say = [float(((one / block) ** 2).sum()) for one, block in zip(measured, blocks, strict=True)]
    assert say == pytest.approx([observer.policy_dim / 5] * 5, rel=0.02)
