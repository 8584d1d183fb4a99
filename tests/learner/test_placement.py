"""A run starts where there is room for it and its GPUs stay apart; anything else is one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.errors import UserError
from learner import placement
from learner.placement import Demand, Node
from learner.resources import DENOISER, REWARDS, ResourcesConfig, check_separate
from rewards_service.pool_config import PoolConfig, ServiceConfig
from tune_configs.loading import compose


def runner(count: int = 1, cpus: float = 0.0, gpus: float = 0.0, resource: str | None = None) -> Demand:
    return Demand("env runner", "resources.num_env_runners", count, cpus, gpus, resource, "resources.x")


def node(**resources: float) -> Node:
    return Node.of(resources)


@pytest.mark.parametrize(
    ("wanted", "nodes", "fits"),
    [
        ([runner(4, gpus=1)], [node(GPU=4)], True),
        ([runner(5, gpus=1)], [node(GPU=4)], False),
        ([runner(2, gpus=2)], [node(GPU=3), node(GPU=1)], False),
        ([runner(3, gpus=0.6)], [node(GPU=2)], False),
        ([runner(3, gpus=0.5)], [node(GPU=2)], True),
        ([runner(2, gpus=0.5), runner(1, gpus=1)], [node(GPU=2)], True),
        ([runner(1, gpus=0.5)], [node(GPU=0.5)], True),
        ([runner(2, cpus=3)], [node(CPU=4), node(CPU=4)], True),
        ([runner(3, cpus=3)], [node(CPU=4), node(CPU=4)], False),
        ([runner(10)], [node(CPU=1)], True),
        ([runner(1, gpus=1, resource="a")], [node(GPU=1), node(a=1)], False),
        ([runner(2, gpus=1, resource="a")], [node(GPU=2, a=1)], True),
        ([runner(1, resource="a")], [node(CPU=1)], False),
        # The CPUs of a GPU node are left to those who need its GPU.
        ([runner(1, cpus=4), runner(1, cpus=4, gpus=1)], [node(CPU=4, GPU=1), node(CPU=4)], True),
    ],
)
def test_processes_fit_as_ray_would_place_them(wanted: list[Demand], nodes: list[Node], fits: bool) -> None:
    assert (placement.lack(wanted, nodes) is None) is fits


def test_what_is_missing_is_one_line_with_option_and_numbers() -> None:
    said = placement.lack([runner(4, cpus=2, gpus=1, resource="a")], [node(CPU=8, GPU=2, a=1), node(CPU=9)])
    assert said is not None
    assert said.startswith("resources.num_env_runners=4: each env runner asks for 1 GPUs and 2 CPUs")
    assert "1 such nodes have 2 GPUs and 8 CPUs" in said
    assert "room for 2 of 4" in said
    assert "\n" not in said
    nowhere = placement.lack([runner(resource="b")], [node(CPU=1)])
    assert nowhere is not None
    assert nowhere.startswith("resources.x='b': none of the cluster's 1 nodes offers it")


@pytest.mark.parametrize(
    ("changes", "pool", "said"),
    [
        ({"gpus_per_env_runner": 0.5, "gpus_per_reward_replica": 0.5}, {}, "gpus_per_reward_replica=0.5"),
        ({"gpus_per_env_runner": 0.5, "gpus_per_reward_replica": 1.0}, {"gpus": 0.25}, "pools.all.gpus=0.25"),
        ({"gpus_per_env_runner": 0.5, "gpus_per_reward_replica": 0.6}, {}, None),
        ({"gpus_per_env_runner": 1.0, "gpus_per_reward_replica": 0.5}, {}, None),
        ({"gpus_per_env_runner": 0.5, "gpus_per_reward_replica": 0.5, "share_gpus": True}, {}, None),
        (
            {
                "gpus_per_env_runner": 0.5,
                "gpus_per_reward_replica": 0.5,
                "denoiser_resource": "a",
                "rewards_resource": "b",
            },
            {},
            None,
        ),
        (
            {
                "gpus_per_env_runner": 0.5,
                "gpus_per_reward_replica": 0.5,
                "denoiser_resource": "a",
                "rewards_resource": "b",
            },
            {"resource": "a"},
            "gpus_per_reward_replica=0.5",
        ),
    ],
)
def test_shares_that_ray_may_put_on_one_gpu_are_refused_unless_asked_for(
    changes: dict[str, Any], pool: dict[str, Any], said: str | None
) -> None:
    resources, rewards = ResourcesConfig(**changes), ServiceConfig(pools={"all": PoolConfig(**pool)})
    if said is None:
        check_separate(resources, rewards)
        return
    with pytest.raises(UserError) as caught:
        check_separate(resources, rewards)
    assert said in str(caught.value)
    assert "resources.share_gpus=true" in str(caught.value)


def test_nodes_that_offer_both_resources_are_refused_where_shares_could_meet() -> None:
    resources = compose(
        ["resources=cluster", "resources.gpus_per_env_runner=0.5", "resources.gpus_per_reward_replica=0.5"]
    ).run.resources
    scoring = replace(runner(1, gpus=0.5, resource=REWARDS), what="reward replica")
    both, apart = [node(GPU=2, **{DENOISER: 1, REWARDS: 1})], [node(GPU=2, **{DENOISER: 1}), node(GPU=1)]
    with pytest.raises(UserError, match="a node of the cluster offers both"):
        placement.check_apart(resources, [scoring], both)
    placement.check_apart(resources, [scoring], apart)
    placement.check_apart(replace(resources, share_gpus=True), [scoring], both)
    placement.check_apart(compose(["resources=cluster"]).run.resources, [replace(scoring, gpus=1.0)], both)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("resources.gpus_per_env_runner=1.5", "resources.gpus_per_env_runner=1.5: give a share up to 1"),
        ("resources.cpus_per_env_runner=-1", "resources.cpus_per_env_runner=-1.0: give a number >= 0"),
        ("resources.denoiser_resource=here", "resources.denoiser_resource='here': give resources.address"),
        ("rewards.pools.all.gpus=2.5", "rewards.pools.all.gpus=2.5: give a share"),
    ],
)
def test_what_ray_would_refuse_or_never_find_is_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    assert str(caught.value).startswith(said)


def test_what_is_missing_for_a_pool_names_the_option_that_asked_for_it() -> None:
    pools = {
        "own": PoolConfig(("clip",), replicas=3, gpus=1.0, resource="here"),
        "rest": PoolConfig(cpus=9.0),
    }
    resources = ResourcesConfig(num_env_runners=0, address="auto", rewards_resource="there")
    own, rest = placement.demands(resources, ServiceConfig(pools=pools))
    begins = {
        "rewards.pools.own.resource='here': none of": ([own], [node(CPU=99)]),
        "rewards.pools.own.replicas=3: each reward replica of pool 'own'": (
            [own],
            [node(CPU=99, GPU=2, here=1)],
        ),
        "resources.rewards_resource='there': none of": ([rest], [node(CPU=99)]),
        "resources.reward_replicas=1: each reward replica of pool 'rest'": ([rest], [node(CPU=8, there=1)]),
    }
    for begin, (wanted, nodes) in begins.items():
        assert (placement.lack(wanted, nodes) or "").startswith(begin)


def test_the_files_say_who_shares() -> None:
    cluster = compose(["resources=cluster"]).run.resources
    assert (cluster.denoiser_resource, cluster.rewards_resource) == (DENOISER, REWARDS)
    assert not cluster.share_gpus
    assert compose(["resources=one_gpu"]).run.resources.share_gpus
