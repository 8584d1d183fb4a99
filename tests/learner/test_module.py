"""The policy behind RLlib's interface: masks, the asymmetric critic, what env runners are given."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from learner.module import PolicyModule

ACTIONS = 4


def build(
    *, inference_only: bool = False, critic_sees_quality: bool = True, critic: bool = False
) -> PolicyModule:
    torch.manual_seed(0)
    spec = RLModuleSpec(
        module_class=PolicyModule,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        action_space=gymnasium.spaces.Discrete(ACTIONS),
        inference_only=inference_only,
        model_config={
            "observation": {"policy": "latent", "critic_sees_quality": critic_sees_quality},
            "sizes": {"feature_dim": 5, "text_dim": 3, "embedding_dim": 2},
            "actions": ["continue", "stop", "look", "restart"],
            "hidden": [16],
            "initial_logits": [0.0] * ACTIONS,
            "critic_on_env_runners": critic,
        },
    )
    module: PolicyModule = spec.build()
    return module


def observations(module: PolicyModule, mask_BA: torch.Tensor) -> torch.Tensor:
    inputs = module.observer.policy_dim + module.observer.critic_dim
    return torch.cat([torch.randn(len(mask_BA), inputs), mask_BA.float()], dim=1)


def logits(module: PolicyModule, obs_BD: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits_BA: torch.Tensor = module.forward_exploration({Columns.OBS: obs_BD})[
            Columns.ACTION_DIST_INPUTS
        ]
    return logits_BA


def values(module: PolicyModule, obs_BD: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.compute_values({Columns.OBS: obs_BD})


def test_illegal_actions_have_no_probability() -> None:
    module = build()
    mask_BA = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    probabilities_BA = logits(module, observations(module, mask_BA)).softmax(dim=1)
    assert (probabilities_BA[~mask_BA] == 0).all()
    assert (probabilities_BA[mask_BA] > 0).all()


def test_only_the_critic_sees_the_critics_part() -> None:
    module = build()
    obs_BD = observations(module, torch.ones(1, ACTIONS, dtype=torch.bool))
    changed_BD = obs_BD.clone()
    start = module.observer.policy_dim
    changed_BD[:, start : start + module.observer.critic_dim] += 1.0
    assert torch.equal(logits(module, obs_BD), logits(module, changed_BD))
    assert not torch.equal(values(module, obs_BD), values(module, changed_BD))


def test_a_blind_critic_is_possible() -> None:
    module = build(critic_sees_quality=False)
    assert module.observer.critic_dim == 0
    assert values(module, observations(module, torch.ones(3, ACTIONS, dtype=torch.bool))).shape == (3,)


def test_normalisation_makes_scaled_inputs_equal() -> None:
    module, plain = build(), build()
    width = module.observer.policy_dim + module.observer.critic_dim
    mean_D, std_D = torch.randn(width), torch.rand(width) + 0.5
    module.set_normalisation(mean_D, std_D)
    obs_BD = observations(plain, torch.ones(2, ACTIONS, dtype=torch.bool))
    scaled_BD = obs_BD.clone()
    scaled_BD[:, :width] = obs_BD[:, :width] * std_D + mean_D
    torch.testing.assert_close(logits(module, scaled_BD), logits(plain, obs_BD), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values(module, scaled_BD), values(plain, obs_BD), atol=1e-5, rtol=1e-4)


def test_env_runners_get_the_policy_and_its_normalisation_but_no_critic() -> None:
    learner, runner = build(), build(inference_only=True)
    width = learner.observer.policy_dim + learner.observer.critic_dim
    learner.set_normalisation(torch.full((width,), 2.0), torch.full((width,), 3.0))
    assert not hasattr(runner, "value")
    runner.set_state(learner.get_state(inference_only=True))
    obs_BD = observations(learner, torch.ones(2, ACTIONS, dtype=torch.bool))
    assert torch.equal(logits(learner, obs_BD), logits(runner, obs_BD))


def test_a_critic_on_env_runners_stays_where_a_sender_has_none() -> None:
    learner, bare, runner = build(), build(inference_only=True), build(inference_only=True, critic=True)
    obs_BD = observations(learner, torch.ones(2, ACTIONS, dtype=torch.bool))
    own_B = values(runner, obs_BD)
    with torch.no_grad():
        for weight in learner.parameters():
            weight.add_(0.1)
    runner.set_state(bare.get_state())
    assert torch.equal(values(runner, obs_BD), own_B)
    runner.set_state(learner.get_state())
    assert torch.equal(values(runner, obs_BD), values(learner, obs_BD))
    assert torch.equal(logits(runner, obs_BD), logits(learner, obs_BD))
