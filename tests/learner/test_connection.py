"""Ray where nobody answers, where somebody else does, and on a machine too busy to start it."""

from __future__ import annotations

import contextlib
import socket

import pytest

from actors.errors import UserError
from learner.connection import connected


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no connection was there, whatever other tests have."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.timeout(60)  # Ray itself would take minutes
@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:PORT", "localhost:PORT", "[::1]:PORT", "a.b:x"])
def test_an_address_where_no_cluster_is_costs_seconds_and_is_one_line(address: str) -> None:
    address = address.replace("PORT", str(unused_port()))
    with pytest.raises(UserError) as told, connected(address, option="evaluation.address"):
        pass
    assert str(told.value).startswith(f"evaluation.address={address}: cannot connect (")
    assert "ray start --head" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.timeout(60)
def test_a_cluster_that_the_environment_names_and_that_is_gone_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    with pytest.raises(UserError, match=r"resources\.address=auto: cannot connect"), connected("auto"):
        pass


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_ray_that_a_busy_machine_keeps_waiting_is_started_again_and_then_given_up(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def init(**options: object) -> None:
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    given_up = pytest.raises(UserError, match="did not start within 30 s, 3 times")
    with given_up if failures == 3 else contextlib.nullcontext(), connected(None):
        pass
    assert len(calls) == min(failures + 1, 3)


def test_what_else_goes_wrong_with_ray_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def init(**options: object) -> None:
        calls.append(options)
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConnectionError), connected(None):
        pass
    assert len(calls) == 1
