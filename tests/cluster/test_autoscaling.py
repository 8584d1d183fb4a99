"""A cluster without workers when a training starts, and an autoscaler with the node types of our YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import cluster
from tests.cluster.head import Autoscaler, running_head
from tests.cluster.test_submit_training import SMALL

TYPES = yaml.safe_load((Path(cluster.__file__).parent / "deploy" / "aws.yaml").read_text())[
    "available_node_types"
]
WORKERS = {name: kind for name, kind in TYPES.items() if name != "head"}
#: One process of each kind, and without GPUs, which nodes here offer and do not have.
CLUSTER = [
    "resources=cluster",
    "resources.num_env_runners=1",
    "resources.reward_replicas=1",
    "resources.gpus_per_env_runner=0",
    "resources.gpus_per_reward_replica=0",
    "resources.slots=4",
    "resources.memo_mib=64",
    "resources.torch_threads=1",
]


@pytest.mark.slow
@pytest.mark.multinode
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", [1, 2])
def test_nodes_come_for_a_training(version: int, folder: Path) -> None:
    (folder / "prompts.txt").write_text("a red circle\na blue square\na green triangle\na red square\n")
    with running_head(autoscaler=Autoscaler(WORKERS, version)) as head:
        resources = [*CLUSTER, f"resources.address={head.gcs_address}"]
        _, found, err = head.say("doctor", *resources, "resources.num_env_runners=4", cwd=folder)
        assert "and an autoscaler" in found, found + err
        assert "the autoscaler will be asked" in found
        # Not by `submit`: nodes of one machine share the folder of a job's code, and each unpacks it anew.
        code, out, err = head.say("train", *SMALL, *resources, cwd=folder)
        assert code == 0, out + err
        assert "none of the cluster's 1 nodes offers it" in out
        _, found, _ = head.say("doctor", *resources, cwd=folder)
        assert "the autoscaler will be asked" not in found
        assert "1 with addiffusion_denoiser" in found
    (row,) = [json.loads(line) for line in (folder / "runs/run/progress.jsonl").read_text().splitlines()]
    assert row["episodes"] == 4
