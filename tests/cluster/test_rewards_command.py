"""`addiffusion rewards`: what it says and what it does on a cluster, with scorers that cost nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from rewards_service import service
from tests.cluster.conftest import Say
from tests.rewards_service.fakes import brightness_scorers, checksum_scorers, flat_images, spec


@pytest.fixture
def started(say: Say, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What `start` prints; the service ends with the test."""
    pools = [spec("brightness", brightness_scorers), spec("checksum", checksum_scorers)]
    monkeypatch.setattr("learner.session.reward_pools", lambda config: pools)
    code, out, err = say("rewards", "start", "--name", "mine")
    assert (code, err) == (0, "")
    yield out
    service.stop("mine")


def test_a_service_is_started_watched_scaled_and_stopped(say: Say, started: str) -> None:
    assert "rewards.service=mine" in started
    client = service.connect("mine")
    for level in range(3):
        client.score(flat_images([level, level]), ["a", "b"], ["brightness"])

    code, out, _ = say("rewards", "status", "--name", "mine", "--json")
    brightness, checksum = json.loads(out)
    assert code == 0
    assert (brightness["scorer"], checksum["scorer"]) == ("brightness", "checksum")
    for pool in (brightness, checksum):
        expected = {"replicas": 1, "alive": 1, "queue": 0, "batch_size": 64, "retries": 0, "restarts": 0}
        assert pool.items() >= expected.items()
    assert brightness["per_replica"][0]["images"] == 6
    assert brightness["p50_ms"] > 0
    assert checksum["p50_ms"] is None

    code, out, _ = say("rewards", "scale", "checksum=2", "--name", "mine")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[:3] for row in rows[1:]] == [["brightness", "1", "1"], ["checksum", "2", "2"]]

    assert say("rewards", "stop", "--name", "mine") == (0, "service 'mine': 3 replicas ended\n", "")
    code, _, err = say("rewards", "stop", "--name", "mine")
    assert (code, err) == (2, "error: --name=mine: no such service; running: none\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "--name", "nobody"), "rewards.service='nobody' does not run"),
        (("scale", "dino"), "'dino': give SCORER=N, for example dino=2"),
        (("scale", "dino=two"), "'dino=two': give SCORER=N"),
        (("scale", "dino=²"), "'dino=²': give SCORER=N"),
        (("start", "rewards=none"), "rewards='none': give one of one_process, per_scorer"),
        (("start", "rewards.pools.all.batch_size=0"), "rewards.pools.all.batch_size=0: give an integer >= 1"),
    ],
)
def test_mistakes_are_one_line(say: Say, ray_session: None, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = say("rewards", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
