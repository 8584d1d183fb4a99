"""Impossible values are found before anything starts, in one line that names option and value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from actors.backbones.config import BackboneConfig
from actors.errors import UserError
from learner.algorithm_settings import AlgorithmSettings
from learner.config import PPOSettings, PromptConfig, RegistryConfig, RunConfig
from learner.curriculum import CurriculumConfig, Phase
from learner.resources import ResourcesConfig
from rewards_service.arithmetic import RewardConfig


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "a/b"}, "name='a/b'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296: give an integer from 0 to 4294967295"),
        ({"prompts": PromptConfig(seed=-1)}, "prompts.seed=-1"),
        ({"registry": RegistryConfig(alias="a b")}, "registry.alias='a b'"),
        ({"registry": RegistryConfig(alias="v1")}, "registry.alias='v1'"),
        (
            {"registry": RegistryConfig(alias="champion")},
            "registry.alias=champion: `addiffusion registry promote`",
        ),
        ({"registry": RegistryConfig(experiment="")}, "registry.experiment=''"),
        ({"resources": ResourcesConfig(num_cpus=-1)}, "resources.num_cpus=-1"),
        ({"ppo": PPOSettings(lr=0.0)}, "ppo.lr=0.0"),
        ({"ppo": PPOSettings(lambda_=1.5)}, "ppo.lambda_=1.5"),
        ({"ppo": PPOSettings(hidden=())}, "ppo.hidden=[]"),
        ({"ppo": PPOSettings(iterations=0)}, "ppo.iterations=0"),
        ({"ppo": PPOSettings(time_limit_s=0.0)}, "ppo.time_limit_s=0.0"),
        ({"ppo": PPOSettings(episodes_per_iteration=1)}, "ppo.episodes_per_iteration=1"),
        ({"registry": RegistryConfig(patience_s=-1.0)}, "registry.patience_s=-1.0"),
        ({"reward": RewardConfig(target_nfe=60.0)}, "reward.target_nfe=60"),
        ({"curriculum": CurriculumConfig((Phase(0.0),))}, "curriculum.phases[0].until=0.0"),
        ({"ppo": PPOSettings(entropy_hold=0.6, entropy_decay=0.5)}, "ppo.entropy_hold=0.6"),
        ({"algorithm": AlgorithmSettings("dqn")}, "algorithm.name='dqn'"),  # type: ignore[arg-type]
        ({"algorithm": AlgorithmSettings(branch_share=1.5)}, "algorithm.branch_share=1.5"),
        ({"algorithm": AlgorithmSettings("appo", branch_share=0.5)}, "algorithm.branch_share=0.5"),
        ({"algorithm": AlgorithmSettings(episodes_per_request=65)}, "algorithm.episodes_per_request=65"),
        ({"algorithm": AlgorithmSettings(max_skipped_updates=0)}, "algorithm.max_skipped_updates=0"),
        (
            {"algorithm": AlgorithmSettings("appo"), "resources": ResourcesConfig(num_env_runners=0)},
            "algorithm.name=appo",
        ),
        ({"prompts": PromptConfig(limit=0)}, "prompts.limit=0"),
        ({"resources": ResourcesConfig(groups=9, slots=8)}, "resources.groups=9"),
        ({"resources": ResourcesConfig(num_env_runners=-1)}, "resources.num_env_runners=-1"),
        ({"backbone": BackboneConfig(cache="taylorseer")}, "resources.slots=32"),
    ],
)
def test_an_impossible_value_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError) as caught:
        RunConfig(**changes).validate()  # type: ignore[arg-type]
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)


def test_a_config_survives_yaml() -> None:
    config = replace(RunConfig(), name="elsewhere", runs_dir="some/where")
    plain = config.as_dict()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert plain["engine"]["actions"] == list(config.engine.actions)
    assert config.run_dir == Path("some/where/elsewhere")
