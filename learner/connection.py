"""Connecting to Ray: one of one's own, or a cluster that runs already.

Always true here: an address where no cluster answers is one line within seconds, naming the option it came
from; Ray itself would try there for a quarter of an hour. What was started here ends with the context.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address

from actors.errors import UserError
from learner.resources import OBJECT_STORE_BYTES

_STARTS = 3
_TOO_SLOW = "timed out during startup"
_REACH_S = 10.0
_TOKEN = "it wants a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
#: What a local Ray and its workers inherit: nothing is reported, libraries' deprecations are not ours.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "RAY_worker_niceness": "0",  # at Ray's 15 anything else on a small machine starves the env runners
}


@contextlib.contextmanager
def connected(
    address: str | None,
    num_cpus: int = 1,
    option: str = "resources.address",
    *,
    log_to_driver: bool = True,
) -> Iterator[None]:
    """Connect to the cluster at `address`, or start a Ray with `num_cpus` here if there is none.

    A connection that was there before is taken, and left. option: how the user gave the address.
    Raises UserError.
    """
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None:
        _start(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=log_to_driver,
        )
    else:
        _join(address, option, log_to_driver)
    try:
        yield
    finally:
        ray.shutdown()


def _start(**options: Any) -> None:
    """`ray.init`, once more where a busy machine took longer than the 30 s that Ray gives it and no option
    changes. Raises UserError where that does not help.
    """
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray has no class of its own for it
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise UserError(
                    f"Ray did not start within 30 s, {_STARTS} times: this machine is too busy; wait until "
                    "other work has ended, or give resources.address of a Ray that runs already"
                ) from error


def _join(address: str, option: str, log_to_driver: bool) -> None:
    try:
        if "://" not in address:  # else Ray's client, which has a time limit
            host, _, port = str(canonicalize_bootstrap_address(address)).rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=log_to_driver)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition(". ")[0].splitlines() or [type(error).__name__]
        raise UserError(
            f"{option}={address}: cannot connect ({_TOKEN if 'AuthToken' in str(error) else reason[0]}); "
            "start a cluster with `ray start --head`, or give the HOST:PORT of one that runs"
        ) from error
