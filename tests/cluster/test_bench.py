"""`addiffusion bench rollout`: what it gives to the benchmark, prints and writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from evaluation import rollout_benchmark
from evaluation.rollout_benchmark import Progress, run_benchmark
from evaluation.rollout_variants import Workload
from rewards_service.contracts import Images, Scores
from tests.cluster.conftest import Say


class Embedder:
    """Scores that cost nothing."""

    name = "fake"
    outputs = ("clip_image", "clip_text", "image_reward")

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        ones = np.ones((len(images), 3), np.float32)
        return {"clip_image": ones, "clip_text": ones, "image_reward": ones[:, 0]}


@pytest.fixture
def workloads(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """Every workload that was measured."""
    seen: list[Workload] = []

    def measured(workload: Workload, progress: Progress) -> dict[str, Any]:
        seen.append(workload)
        return run_benchmark(workload, progress)

    monkeypatch.setattr("rewards_service.world.load_scorers", lambda folder, device: [Embedder()])
    monkeypatch.setattr(rollout_benchmark, "run_benchmark", measured)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return seen


def test_the_configured_engine_is_measured(say: Say, folder: Path, workloads: list[Workload]) -> None:
    sizes = ("--episodes", "2", "--slots", "2", "--repeats", "1")
    code, out, _ = say("bench", "rollout", "engine.num_steps=4", *sizes, "--json", "bench.json")
    assert code == 0
    (workload,) = workloads
    assert (workload.engine.num_steps, workload.slots, workload.episodes) == (4, 2, 2)
    assert workload.embedding_dim == 3
    assert isinstance(workload.pipeline, DiffusionPipeline)
    report = json.loads((folder / "bench.json").read_text())
    assert 0.0 < report["denoiser_utilisation"] <= 1.0
    assert set(report["decision_overhead"]) == {"latent", "timestep", "seed"}
    for key in ("episodes_per_s", "vs_serial", "vs_stock_pipeline", "peak_memory_mib"):
        assert report[key] > 0.0
    assert report["denoiser_utilisation_scoring"] is None
    assert "times stock pipeline" in out
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--slots", "0"), "--slots=0"),
        (("--repeats", "none"), "none"),
        (("--json", "no/such/folder.json"), "--json=no/such/folder.json"),
        (("backbone.name=nowhere",), "backbone is 'nowhere'"),
        (("engine.num_step=4",), "engine.num_step"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], named: str, say: Say, folder: Path, workloads: list[Workload]
) -> None:
    code, out, err = say("bench", "rollout", *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []
