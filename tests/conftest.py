"""Fixtures that every folder's tests share.

Always true: no test needs a network; at most one Ray session in each of pytest's processes, started by the
first test that asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub; without this, refusals wait for its retries


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray, shared by all tests of a process that need it: four logical CPUs, no dashboard."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # By default a busy machine starves Ray's workers.
    import ray

    ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
    )
    yield
    ray.shutdown()
