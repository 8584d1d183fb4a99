"""Where an evaluation is computed: here, or on the cluster's node that has the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

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


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """One whose nodes say that they have a GPU."""
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


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


@pytest.mark.usefixtures("_no_gpu_here", "_cluster")
def test_it_goes_to_a_gpu_of_the_cluster_in_place_of_a_worker() -> None:
    process, workers, gpus = where_the_device_is(ON_A_GPU, place)
    assert process != os.getpid()
    assert workers == 3
    assert len(gpus) == 1


@pytest.mark.usefixtures("_no_gpu_here", "_cluster")
def test_a_mistake_that_shows_there_is_told_here() -> None:
    with pytest.raises(UserError, match=r"^evaluation\.prompts=none\.txt: no such file$"):
        where_the_device_is(ON_A_GPU, refuse)
