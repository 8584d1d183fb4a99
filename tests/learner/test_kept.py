"""What a process keeps between runs changes how long they take, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.kept import Kept
from actors.memo import Call
from learner import session
from learner.config import RunConfig
from learner.json_lines import read_rows
from learner.train import train
from tests.learner.test_train import same, weights, without_times
from tests.learner.toy import ToyBackbone, make_client, toy_config, toy_world


def test_a_backbone_is_loaded_once_and_a_copy_in_another_process_begins_empty() -> None:
    loaded: list[ToyBackbone] = []

    def load() -> ToyBackbone:
        loaded.append(ToyBackbone())
        return loaded[-1]

    kept = Kept(load, 1.0)
    assert kept.backbone() is kept.backbone()
    assert len(loaded) == 1
    assert copy.deepcopy(kept) is kept
    assert Kept(load, 0.0).calls is None

    full = Kept(ToyBackbone, 1.0)
    assert full.calls is not None
    zeros = full.backbone().encode_prompts(["x"]).pooled_BD
    full.calls.keep(["key"], [Call(zeros, None, zeros, None)])
    used = 2 * zeros.nbytes
    assert full.scores is not None
    assert full.calls.bytes_to_come + full.scores.bytes_to_come == 1.25 * 2**20 - used
    travelled = pickle.loads(pickle.dumps(full))  # noqa: S301
    assert travelled.calls.recall(["key"]) == [None]
    assert travelled.calls.bytes_to_come == 2**20


@pytest.mark.usefixtures("ray_session")
def test_a_run_learns_the_same_whatever_the_process_remembers_of_other_runs(tmp_path: Path) -> None:
    kept = Kept(ToyBackbone, 8.0)

    @contextlib.contextmanager
    def world(config: RunConfig) -> Iterator[session.World]:
        yield session.World(kept.backbone, make_client, "toy", kept)

    config = toy_config(tmp_path, name="alone")
    config = replace(config, resources=replace(config.resources, memo_mib=8.0))
    other = replace(
        config,
        name="other",
        seed=3,
        engine=replace(config.engine, actions=("continue", "stop", "guidance-3"), max_nfe=7),
        reward=replace(config.reward, profile="terminal_only"),
    )
    alone = train(config, world=toy_world)
    train(other, world=world)
    after = train(replace(config, name="after"), world=world)
    rows = [read_rows(run.run_dir / "progress.jsonl") for run in (alone, after)]
    shares = [[row.pop("remembered_share") for row in one] for one in rows]
    # The first run remembers its references; the last reads these from disk, and has only the others' calls.
    assert shares[1][0] >= shares[0][0] > 0, "what the other runs asked needed no second call"
    assert without_times(rows[0]) == without_times(rows[1])
    assert same(weights(alone.policy_dir), weights(after.policy_dir))
