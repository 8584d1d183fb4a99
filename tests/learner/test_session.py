"""Where a run's scores come from: pools of its own that end with it, or a service that outlives it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actors.backbones.config import BackboneConfig
from actors.errors import UserError
from learner import session
from learner.config import RunConfig
from learner.placement import Demand, Node
from learner.resources import ResourcesConfig
from rewards_service import service
from rewards_service.contracts import Scorer
from rewards_service.identity import scorers_identity
from rewards_service.pool_config import ServiceConfig
from rewards_service.scorers_config import ClipConfig, DinoConfig, ScorersConfig
from shapes import weights
from tests.learner.toy import toy_config
from tests.rewards_service.fakes import brightness_scorers, flat_images, spec


@pytest.fixture
def shared(ray_session: None) -> Iterator[str]:
    service.start("trials", [spec("brightness", brightness_scorers)], detached=True)
    yield "trials"
    service.stop("trials")


def using(name: str, runs_dir: Path) -> RunConfig:
    resources = ResourcesConfig(num_env_runners=0, slots=8, groups=2, address="auto")
    return toy_config(runs_dir, rewards=ServiceConfig(service=name), resources=resources)


def test_a_run_uses_a_running_service_and_leaves_it_running(shared: str, tmp_path: Path) -> None:
    config = using(shared, tmp_path)
    config.validate()
    for _ in range(2):
        with session.world(config) as world:
            scores = world.make_client().score(flat_images([3, 4]), ["a", "b"])
            assert scores["brightness"].tolist() == [3, 4]
            assert world.scorers == "fakes"
            assert service.services() == [shared]
    assert service.services() == [shared]


def test_pools_of_its_own_end_with_the_run(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "reward_pools", lambda config: [spec("brightness", brightness_scorers)])
    with session.world(toy_config(tmp_path)) as world:
        assert world.make_client().score(flat_images([3]), ["a"])["brightness"].tolist() == [3]
        (own,) = service.services()
    service.stop(own)  # waits for those that were ended already
    assert service.services() == []


def test_a_service_that_does_not_run_is_the_users_mistake(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rewards.service='nobody' does not run \(none runs\); start it"):
        session.world(using("nobody", tmp_path)).__enter__()


def test_a_mistake_in_the_pools_is_the_users(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> list[Scorer]:
        raise ValueError("rewards.pools: no scorer is called 'dyno'; give one of dino")

    monkeypatch.setattr(session, "reward_pools", lambda config: [spec("mine", build)])
    with pytest.raises(UserError, match=r"rewards.pools: no scorer is called 'dyno'; give one of dino"):
        session.world(toy_config(tmp_path)).__enter__()


def test_a_local_ray_has_no_services(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rewards.service='mine': give resources.address too"):
        toy_config(tmp_path, rewards=ServiceConfig(service="mine")).validate()


def config_with(scorers: ScorersConfig | str) -> RunConfig:
    return RunConfig(
        backbone=BackboneConfig(scorers=scorers), resources=ResourcesConfig(cpus_per_reward_replica=0.5)
    )


def test_reward_actors_load_the_models_that_are_named(ray_session: None) -> None:
    named = ScorersConfig(dino=DinoConfig(str(weights.PATH / "dino")))
    with session.world(config_with(named)) as opened:
        client = opened.make_client()
        scores = client.score(np.zeros((2, 64, 64, 3), np.uint8), ["a", "b"])
        assert set(scores) == {"dino"}
        assert opened.scorers == scorers_identity(named)


def test_damaged_weights_are_the_users_one_line(ray_session: None, tmp_path: Path) -> None:
    shutil.copytree(weights.PATH / "clip", tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    named = ScorersConfig(clip=ClipConfig(str(tmp_path / "clip"), pretrained=None))
    with (
        pytest.raises(UserError, match=r"^backbone\.scorers\.clip\.model=.*SafetensorError"),
        session.world(config_with(named)),
    ):
        pass


@pytest.mark.parametrize("end", [None, UserError, KeyboardInterrupt])
def test_an_autoscaler_is_told_when_nothing_is_wanted_any_more(
    end: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room comes, or patience ends, or the user's does; else its nodes would stay and cost."""
    asked: list[list[dict[str, float]]] = []
    nodes = [Node.of({"CPU": 1.0})]

    def sleep(seconds: float) -> None:
        if end is KeyboardInterrupt:
            raise KeyboardInterrupt
        if end is None:
            nodes.append(Node.of({"CPU": 4.0}))
        time.sleep(seconds)

    monkeypatch.setattr(session, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(session, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(session, "free_nodes", lambda: nodes)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    wanted = [Demand("env runner", "resources.num_env_runners", 2, 2.0, 0.0, None, "resources.x")]
    ends: contextlib.AbstractContextManager[object] = (
        contextlib.nullcontext() if end is None else pytest.raises(end)
    )
    with ends:
        session.await_room(wanted, 0.05)
    assert asked == [[{"CPU": 2.0}] * 2, []]


def test_what_a_ray_of_ones_own_lacks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "alive_nodes", lambda: [Node.of({"CPU": 1.0})])
    wanted = [Demand("env runner", "resources.num_env_runners", 2, 2.0, 0.0, None, "resources.x")]
    told: list[str] = []
    with pytest.raises(UserError, match=r"resources.num_env_runners=2: each env runner asks for 0"):
        session.make_room(ResourcesConfig(), wanted, told.append)
    assert not told
