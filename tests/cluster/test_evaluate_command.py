"""Where an evaluation is computed: here, or on the cluster's node that has the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch

from actors.errors import UserError
from cluster.evaluate_command import where_the_device_is
from evaluation.config import EvaluationConfig

ON_A_GPU = EvaluationConfig(device="cuda", address="auto", workers=4)


@pytest.fixture
def _no_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def place(config: EvaluationConfig) -> tuple[int, int, list[int]]:
    """The process, how many workers it may have beside itself, and the GPUs that it holds."""
    return os.getpid(), config.workers, ray.get_gpu_ids()


def refuse(config: EvaluationConfig) -> None:
    raise UserError("evaluation.prompts=none.txt: no such file")


def test_what_needs_no_gpu_or_has_one_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert where_the_device_is(EvaluationConfig(workers=4), lambda config: config.workers) == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert where_the_device_is(ON_A_GPU, lambda config: config.workers) == 4


@pytest.mark.usefixtures("_no_gpu_here")
def test_without_a_gpu_and_a_cluster_it_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"evaluation\.device=cuda: no GPU is here; give evaluation\.device=cpu"
    ):
        where_the_device_is(EvaluationConfig(device="cuda"), place)


def in_a_cluster() -> None:
    """What comes back from a cluster whose node says that it has a GPU, as JSON."""
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        process, workers, gpus = where_the_device_is(ON_A_GPU, place)
        try:
            where_the_device_is(ON_A_GPU, refuse)
        except UserError as error:
            told = str(error)
    print(json.dumps([process != os.getpid(), workers, len(gpus), told]))  # noqa: T201


def test_it_goes_to_a_gpu_of_the_cluster_in_place_of_a_worker_and_mistakes_come_back() -> None:
    """In a process of its own: the tests' shared Ray has no GPU."""
    code = f"from {__name__} import in_a_cluster; in_a_cluster()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [
        True,
        3,
        1,
        "evaluation.prompts=none.txt: no such file",
    ]
