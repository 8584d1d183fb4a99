"""Every variant of every ablation, trained for real: the embedded world, one short iteration each."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.region_head import RemainingChangeHead, save_region_head
from tune_configs.results import table
from tune_configs.sweep import prepare, run_sweep
from tune_configs.sweep_files import read_sweep

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

TINY = (
    "prompts.limit=2",
    "resources.slots=4",
    "resources.groups=1",
    "engine.num_steps=4",
    "engine.warmup_steps=1",
    "ppo={iterations: 1, episodes_per_iteration: 2, minibatch_size: 8, num_epochs: 1, hidden: [16]}",
    "watch={every: 1, prompts: 2}",
)
JUDGE = [
    "sweep.judge.prompts=2",
    "sweep.judge.fewest_prompts=2",
    "sweep.judge.seeds=1",
    "sweep.judge.resamples=100",
]


def test_every_variant_of_every_ablation_trains_and_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = load_backbone(BackboneConfig())
    head = RemainingChangeHead(backbone.latent_shape[0])
    save_region_head("runs/head.safetensors", head, backbone=backbone.identity)
    sweep = read_sweep("ablation", "all", ["sweep.seeds=[0]", "sweep.max_concurrent=1", *JUDGE])
    prepared = prepare(sweep, TINY, Path("runs/all"), "sqlite:///runs/mlflow.db")
    outcomes = run_sweep(prepared)
    rows = table(sweep, prepared.specs, outcomes)
    assert [(row.label, row.errors) for row in rows if row.status != "finished"] == []
    assert len(rows) == 4 + 9 + 5 + 5 + 2
    assert len(outcomes) == len(rows) - 3
    for row in rows:
        assert row.numbers["cost"] >= row.numbers["nfe"] >= 1
        assert (row.p_holm is None) == row.is_reference
