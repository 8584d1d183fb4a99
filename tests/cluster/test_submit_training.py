"""The main job in reduced form through `addiffusion submit`, from a folder that is not the project's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cluster.head import running_head

SMALL = [
    "ppo.iterations=1",
    "ppo.episodes_per_iteration=4",
    "engine.num_steps=4",
    "engine.warmup_steps=1",
    "engine.max_nfe=8",
    "prompts.source=prompts.txt",
    "prompts.seeds=1",
    "resources.num_env_runners=1",
    "resources.slots=4",
    "watch.every=0",
    "progress.pictures=0",
    "evaluation=quick",
    "evaluation.prompts_per_tier=1",
    "evaluation.seeds=1",
    "evaluation.baselines=[ddim-4,ddim-50]",
    "evaluation.metrics.names=[nfe]",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_runs_to_its_end_and_its_result_is_in_mlflow(tmp_path: Path) -> None:
    mine, storage = tmp_path / "mine", tmp_path / "storage"
    mine.mkdir()
    storage.mkdir()
    (mine / "prompts.txt").write_text("a red circle\na blue square\na green triangle\na red square\n")
    with running_head() as head:
        options = ["--address", head.address, "--python", head.python, "--storage", str(storage)]
        code, out, err = head.say("submit", *options, "--", "train", "name=mine", *SMALL, cwd=mine)
    assert code == 0, out + err
    run_dir = storage / "runs" / "mine"
    assert f"policy: {run_dir}/policy" in out
    assert f"results: {run_dir}" in err
    assert (run_dir / "report.html").stat().st_size > 0
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/runs/mlflow.db")
    version = client.get_model_version_by_alias("addiffusion-shapes", "candidate")
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    (row,) = [json.loads(line) for line in (run_dir / "progress.jsonl").read_text().splitlines()]
    assert run.data.metrics["return"] == pytest.approx(row["return"])
