"""Which pools a configuration makes of a folder of reward models, and what it may not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards_service.pool_config import PoolConfig, ServiceConfig
from rewards_service.scorer_pools import scorer_pools
from rewards_service.scorers_config import ClipConfig, DinoConfig, ScorersConfig
from tune_configs.loading import compose

SIZE: dict[str, Any] = {"replicas": 2, "cpus": 0.5, "gpus": 0.0, "resource": None, "torch_threads": 1}


def hosted(config: ServiceConfig, models: Path | ScorersConfig) -> dict[str, list[str]]:
    named = models if isinstance(models, ScorersConfig) else str(models)
    return {
        pool.name: [scorer.name for scorer in pool.build()] for pool in scorer_pools(config, named, **SIZE)
    }


def test_one_pool_hosts_everything_unless_it_is_split(world_folder: Path) -> None:
    everything = ["clip+aesthetic", "dino", "preference"]
    assert hosted(compose().run.rewards, world_folder) == {"all": everything}
    split = hosted(compose(["rewards=per_scorer"]).run.rewards, world_folder)
    assert split == {"clip": everything[:1], "dino": everything[1:2], "preference": everything[2:]}
    rest = ServiceConfig(pools={"dino": PoolConfig(scorers=("dino",)), "others": PoolConfig()})
    assert hosted(rest, world_folder) == {"dino": ["dino"], "others": ["clip+aesthetic", "preference"]}


def test_configured_models_are_split_by_name_and_only_those_of_a_pool_are_loaded(world_folder: Path) -> None:
    models = ScorersConfig(
        clip=ClipConfig(str(world_folder / "clip"), pretrained=None),
        dino=DinoConfig(str(world_folder / "dino")),
    )
    rest = ServiceConfig(pools={"dino": PoolConfig(scorers=("dino",)), "others": PoolConfig()})
    assert hosted(rest, models) == {"dino": ["dino"], "others": ["clip"]}
    missing = replace(models, clip=ClipConfig("no/such/folder", pretrained=None))
    dino, others = scorer_pools(rest, missing, **SIZE)
    assert [scorer.name for scorer in dino.build()] == ["dino"]
    with pytest.raises(ValueError, match=r"backbone\.scorers\.clip\.model=no/such/folder"):
        others.build()


def test_a_pool_may_have_a_size_of_its_own(world_folder: Path) -> None:
    run = compose(["rewards.pools.dino.scorers=[dino]", "rewards.pools.dino.replicas=3"]).run
    everything, dino = scorer_pools(run.rewards, str(world_folder), **SIZE)
    assert (everything.config.replicas, everything.config.cpus) == (2, 0.5)
    assert (dino.config.replicas, dino.config.cpus, dino.config.scorers) == (3, 0.5, ("dino",))


def test_scorers_that_do_not_exist_and_pools_without_scorers_are_refused(world_folder: Path) -> None:
    unknown = ServiceConfig(pools={"all": PoolConfig(), "other": PoolConfig(scorers=("dyno",))})
    with pytest.raises(ValueError, match=r"no scorer is called 'dyno'; give one of clip.aesthetic, dino"):
        hosted(unknown, world_folder)
    names = ("clip+aesthetic", "dino", "preference")
    empty = ServiceConfig(pools={"mine": PoolConfig(scorers=names), "all": PoolConfig()})
    with pytest.raises(ValueError, match=r"rewards.pools.all: all scorers are in other pools"):
        hosted(empty, world_folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: give an integer >= 1"),
        ({"max_queued": -1}, "max_queued=-1: give an integer >= 1"),
        ({"replicas": 0}, "replicas=0: give an integer >= 1"),
        ({"gpus": -0.5}, "gpus=-0.5: give a number >= 0"),
        ({"batch_timeout_s": 0.0}, "batch_timeout_s=0.0: give a number of seconds above 0"),
    ],
)
def test_impossible_pools_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pools": {}}, "pools={}: give at least one pool"),
        ({"pools": {"a": PoolConfig(), "b": PoolConfig()}}, "two of them take all other scorers"),
        (
            {"pools": {"a": PoolConfig(scorers=("x",)), "b": PoolConfig(scorers=("x",))}},
            "'x' is in two of them",
        ),
        ({"pools": {"a/b": PoolConfig()}}, "pools='a/b': give a name without '/'"),
        ({"service": ""}, "service='': give a name"),
        ({"deadline_s": -1.0}, "deadline_s=-1.0: give a number of seconds"),
    ],
)
def test_impossible_services_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServiceConfig(**options)
