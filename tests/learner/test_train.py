"""Whole runs on the toy world: learning, repeating, resuming, surviving. One Ray session for all."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from actors import trajectory_store
from actors.backbones.config import BackboneConfig
from actors.errors import UserError
from actors.policy import load_policy
from actors.trajectory_origin import read_origin
from learner import checkpoints, session
from learner.calibration import calibrate, local_references
from learner.config import CheckpointConfig, PPOSettings, RegistryConfig, RunConfig
from learner.curriculum import CurriculumConfig, Phase
from learner.guards import TrainingFailure
from learner.json_lines import read_rows
from learner.ppo import learning_rate
from learner.registration import read_result
from learner.resources import ResourcesConfig
from learner.run import Run
from learner.train import TrainResult, train, training_requests
from tests.learner.toy import Saboteur, ToyBackbone, make_client, toy_config, toy_world

pytestmark = pytest.mark.usefixtures("ray_session")

LEARNING = PPOSettings(
    iterations=30, episodes_per_iteration=64, minibatch_size=64, hidden=(32,), lr=5e-3, entropy_start=0.01
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder)[0].state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {
        "time",
        "seconds",
        "sampling_s",
        "update_s",
        "time_left_s",
        "held_out/seconds",
        "held_out/share",
        "episodes_per_s",
        "denoiser_utilisation",
        "waiting_share",
    }
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


@pytest.fixture(scope="module")
def ended(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of two iterations."""
    return train(toy_config(tmp_path_factory.mktemp("ended")), world=toy_world)


def test_the_step_size_falls_to_its_share_in_the_last_iteration(tmp_path: Path) -> None:
    """With nothing left of it, the second of two iterations learns nothing."""
    learnt = []
    for iterations in (1, 2):
        ppo = replace(LEARNING, iterations=iterations, lr_end_share=0.0)
        config = toy_config(tmp_path, name=f"run-{iterations}", ppo=ppo)
        learnt.append(weights(train(config, world=toy_world).policy_dir))
    assert same(*learnt)
    assert learning_rate(replace(LEARNING, iterations=3, lr_end_share=0.5), 1) == pytest.approx(0.75 * 5e-3)


def test_ppo_learns_to_restart_bad_seeds_and_to_stop_good_ones(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    config = toy_config(tmp_path, ppo=LEARNING)
    result = train(config, progress=told.append, world=toy_world)
    rows = read_rows(result.run_dir / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, 31))
    assert result.ended == "finished"
    # Half of all seeds are good: only a policy that restarts the others gets beyond that.
    good = [row["scores"]["image_reward"] for row in rows]
    returns = [row["return"] for row in rows]
    assert np.mean(good[:3]) < 0.65
    assert np.mean(good[-5:]) > 0.75
    assert np.mean(returns[-5:]) > np.mean(returns[:3]) + 0.1
    phases = [row["phase"] for row in told]
    assert phases[0] == "starting"
    assert phases.count("training") == 30
    assert [row["done"] for row in told if row["phase"] == "references"][-1] == 32


def test_same_seed_same_result_and_grouping_does_not_matter(tmp_path: Path) -> None:
    runs = []
    for name, resources in {
        "one": ResourcesConfig(num_env_runners=0, slots=8, groups=2),
        "two": ResourcesConfig(num_env_runners=0, slots=8, groups=2),
        "three": ResourcesConfig(num_env_runners=0, slots=5, groups=1),
    }.items():
        config = toy_config(tmp_path, name=name, resources=resources)
        runs.append(train(config, world=toy_world))
    first, second, third = (without_times(read_rows(run.run_dir / "progress.jsonl")) for run in runs)
    assert first == second
    assert same(weights(runs[0].policy_dir), weights(runs[1].policy_dir))
    for ours, theirs in zip(first, third, strict=True):
        assert ours["actions"] == theirs["actions"]
        assert ours["nfe"] == theirs["nfe"]
        assert ours["return"] == pytest.approx(theirs["return"], abs=1e-6)
        assert sum(ours["reward_parts"].values()) == pytest.approx(ours["return"], abs=1e-6)
    files = [path for path in (tmp_path / "references").rglob("*") if path.is_file()]
    assert len(files) == 1, "the second and the third run found the references of the first"


def test_a_resumed_run_is_the_run_that_was_never_interrupted(tmp_path: Path) -> None:
    """With all that goes on by itself: the curriculum, and the price that follows a target."""
    toy = toy_config(tmp_path)
    whole = replace(
        toy,
        name="whole",
        ppo=replace(toy.ppo, iterations=4),
        reward=replace(toy.reward, target_nfe=2.0),
        curriculum=CurriculumConfig((Phase(1.0, 0.5, 1.0, 0.8, 0.2),)),
    )
    parts = replace(whole, name="parts")

    def interrupt(row: dict[str, Any]) -> None:
        if row.get("iteration") == 2:
            os.kill(os.getpid(), signal.SIGINT)

    straight = train(whole, world=toy_world)
    halted = train(parts, world=toy_world, progress=interrupt)
    assert (halted.ended, halted.iterations) == ("interrupted", 2)
    resumed = train(parts, resume=halted.run_dir, world=toy_world)
    assert (resumed.ended, resumed.iterations) == ("finished", 4)
    expected = without_times(read_rows(straight.run_dir / "progress.jsonl"))
    assert len({row["c_nfe"] for row in expected}) == 4
    assert without_times(read_rows(resumed.run_dir / "progress.jsonl")) == expected
    assert same(weights(straight.policy_dir), weights(resumed.policy_dir))


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("ppo", "hidden", (8,)),
        ("engine", "actions", ("continue", "stop")),
        ("engine", "num_steps", 4),
        ("observation", "policy", "timestep"),
        ("algorithm", "name", "reinforce"),
    ],
)
def test_what_a_run_is_made_for_cannot_be_changed_on_the_way(
    ended: TrainResult, tmp_path: Path, section: str, option: str, value: object
) -> None:
    """And nothing is lost by trying: neither its checkpoint is blamed nor its configuration written over."""
    config = replace(toy_config(ended.run_dir.parent), runs_dir=str(tmp_path))
    other = replace(config, **{section: replace(getattr(config, section), **{option: value})})  # type: ignore[arg-type]
    before = (ended.run_dir / "config.yaml").read_text()
    with pytest.raises(UserError, match=rf"^{section}\.{option}=.*: a run that goes on keeps"):
        train(other, resume=ended.run_dir, world=toy_world)
    assert (ended.run_dir / "config.yaml").read_text() == before


def test_a_run_does_not_go_on_with_another_backbone(ended: TrainResult) -> None:
    class Other(ToyBackbone):
        identity = "other"

    @contextmanager
    def other_world(config: RunConfig) -> Iterator[session.World]:
        yield session.World(Other, make_client, "toy")

    config = toy_config(ended.run_dir.parent)
    before = (ended.run_dir / "config.yaml").read_text()
    longer = replace(config, ppo=replace(config.ppo, iterations=3))
    with pytest.raises(UserError, match="trained on backbone toy, this one is other"):
        train(longer, resume=ended.run_dir, world=other_world)
    assert (ended.run_dir / "config.yaml").read_text() == before
    assert train(longer, resume=ended.run_dir, world=toy_world).iterations == 3
    assert yaml.safe_load((ended.run_dir / "config.yaml").read_text())["ppo"]["iterations"] == 3


def test_a_run_that_had_ended_is_registered_once_and_again_when_it_goes_on(tmp_path: Path) -> None:
    """Whoever tries a job again does not know that only its evaluation had failed."""
    config = toy_config(tmp_path, ppo=replace(toy_config(tmp_path).ppo, iterations=1))
    config = replace(config, registry=RegistryConfig())
    assert train(config, world=toy_world).model_version == "1"
    again = train(config, resume=config.run_dir, world=toy_world)
    assert (again.model_version, again.iterations) == ("1", 1)
    assert read_result(config.run_dir).model_version == "1"
    longer = replace(config, ppo=replace(config.ppo, iterations=2))
    assert train(longer, resume=config.run_dir, world=toy_world).model_version == "2"


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), world=toy_world)
    network, metadata = load_policy(result.policy_dir)
    assert metadata["backbone"] == "toy"
    assert BackboneConfig.from_metadata(metadata["backbone_config"]) == toy_config(tmp_path).backbone
    assert metadata["iteration"] == 2
    assert metadata["actions"] == ["continue", "stop", "look", "restart"]
    assert network.obs_std.min() > 0
    kept = sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())
    assert kept == ["iteration-000001", "iteration-000002"]
    table = trajectory_store.read(result.run_dir / "trajectories")
    rows = read_rows(result.run_dir / "progress.jsonl")
    assert table.num_rows == sum(row["decisions"] for row in rows)
    assert sum(table["terminateds"].to_pylist()) == sum(row["episodes"] for row in rows) == 32
    assert set(table["weights_seq_no"].to_pylist()) == {0, 1}
    assert not list(result.run_dir.rglob(".*")), "something half-written was left"
    config = toy_config(tmp_path)
    requests = training_requests(config)
    elsewhere = replace(config, runs_dir=str(tmp_path / "elsewhere"))
    found = local_references(elsewhere, ToyBackbone(), make_client(), "toy", requests)
    measured = calibrate(found, config.reward)
    stored = yaml.safe_load((result.run_dir / "calibration.yaml").read_text())["reward"]
    assert stored == {"scales": measured.scales, "sigma": measured.sigma}
    state = checkpoints.read_state(checkpoints.newest(result.run_dir))
    assert state.sigma == measured.sigma
    assert state.scales == config.reward.scales | measured.scales


def test_storing_episodes_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    """The critic goes to the env runners for it, also where a run is resumed that had stored none."""
    plain = toy_config(tmp_path, name="plain", checkpoints=CheckpointConfig(every=1, trajectories=False))
    stored = toy_config(
        tmp_path, name="stored", checkpoints=CheckpointConfig(every=1, trajectory_previews=True)
    )
    one, other = (train(config, world=toy_world) for config in (plain, stored))
    assert same(weights(one.policy_dir), weights(other.policy_dir))
    table = trajectory_store.read(other.run_dir / "trajectories")
    assert table["values"].null_count == table["preview"].null_count == 0
    assert not (one.run_dir / "trajectories").exists()
    longer = replace(plain, ppo=replace(plain.ppo, iterations=3), checkpoints=CheckpointConfig(every=1))
    resumed = train(longer, resume=one.run_dir, world=toy_world)
    assert resumed.iterations == 3
    later = trajectory_store.read(one.run_dir / "trajectories")
    assert set(later["weights_seq_no"].to_pylist()) == {2}
    assert read_origin(one.run_dir / "trajectories").metadata["run"] == "plain"


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    config = toy_config(tmp_path, ppo=replace(toy_config(tmp_path).ppo, iterations=1))
    refused: list[str] = []

    def again(row: dict[str, Any]) -> None:
        for resume in (None, config.run_dir):
            if row["phase"] == "training":
                with pytest.raises(UserError) as error:
                    train(config, resume=resume, world=toy_world)
                refused.append(str(error.value))

    train(config, progress=again, world=toy_world)
    assert [sentence.partition("another process")[1] for sentence in refused] == ["another process"] * 2
    with pytest.raises(UserError, match=r"name=toy: .* holds a run already"):
        train(config, world=toy_world)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    config = toy_config(tmp_path, ppo=replace(toy_config(tmp_path).ppo, iterations=1))
    result = train(config, world=toy_world)
    checkpoint = checkpoints.newest(result.run_dir)
    (checkpoint / "random.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"resume=.*iteration-000001: damaged"):
        train(config, resume=result.run_dir, world=toy_world)
    with pytest.raises(UserError, match=r"resume=.*: no checkpoint below it"):
        train(config, resume=tmp_path / "nowhere", world=toy_world)


def test_the_price_follows_a_target(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    config = replace(config, reward=replace(config.reward, target_nfe=1.0))
    rows = read_rows(train(config, world=toy_world).run_dir / "progress.jsonl")
    assert rows[0]["nfe"] > 1.0
    assert rows[1]["c_nfe"] > rows[0]["c_nfe"] == config.reward.c_nfe


def test_a_nan_ends_the_run_and_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, ppo=replace(toy_config(tmp_path).ppo, iterations=4))
    ordinary = Run._iterate_once

    def poisoned(run: Run) -> dict[str, Any]:
        if run.iteration == 2:
            run.algorithm.learner_group.foreach_learner(
                lambda learner: (
                    learner.module["default_policy"].policy.layers[0].weight.data.fill_(float("nan"))
                )
            )
        return ordinary(run)

    monkeypatch.setattr(Run, "_iterate_once", poisoned)
    with pytest.raises(TrainingFailure, match=r"iteration 3: .* not finite|iteration 3: .* is nan"):
        train(config, world=toy_world)
    assert load_policy(config.run_dir / "policy")[1]["iteration"] == 2
    assert [row["iteration"] for row in read_rows(config.run_dir / "progress.jsonl")] == [1, 2]


@contextmanager
def sabotaged_world(config: RunConfig, after: int) -> Iterator[session.World]:
    marker = config.run_dir / "sabotaged"
    yield session.World(ToyBackbone, functools.partial(Saboteur, marker, after), "toy")


@pytest.mark.parametrize(
    "calls",
    [pytest.param(2, marks=pytest.mark.slow, id="among the references"), pytest.param(40, id="in training")],
)
def test_a_killed_env_runner_is_replaced_and_training_goes_on(tmp_path: Path, calls: int) -> None:
    config = toy_config(
        tmp_path,
        ppo=replace(toy_config(tmp_path).ppo, iterations=100_000),
        resources=ResourcesConfig(num_env_runners=2, slots=4, groups=2),
        checkpoints=CheckpointConfig(every=100_000, trajectories=False),
    )
    marker = config.run_dir / "sabotaged"
    episodes: list[int] = []

    def stop_when_mended(row: dict[str, Any]) -> None:
        if row["phase"] == "training":
            episodes.append(row["episodes"])
            if marker.exists() and episodes[-2:] == [16, 16]:
                os.kill(os.getpid(), signal.SIGINT)

    result = train(config, progress=stop_when_mended, world=functools.partial(sabotaged_world, after=calls))
    assert marker.exists()
    assert result.ended == "interrupted"
    assert episodes[-1] == 16
    assert load_policy(result.policy_dir)[1]["iteration"] == len(episodes)
    if calls == 40:
        assert min(episodes) < 16
