"""Stored episodes: whole, of one version, and read a part at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from actors import trajectory_store
from actors.collector import Collector
from actors.contracts import EpisodeRequest
from actors.engine import Engine
from actors.errors import UserError
from actors.ledger import Target
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.trajectory import TrainingRequest, Trajectory
from actors.trajectory_origin import ORIGIN_FILE, common_origin, read_origin
from tests.learner.stored import SIZES, aimless, gather, store
from tests.learner.toy import ToyBackbone, make_client, toy_config


@pytest.fixture
def stored(tmp_path: Path) -> tuple[list[Trajectory], Path]:
    trajectories = gather(aimless, tmp_path, 96, seed=1)
    return trajectories, store(trajectories, tmp_path / "stored")


def test_streaming_gives_whole_episodes_however_they_are_cut(
    stored: tuple[list[Trajectory], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectories, folder = stored
    monkeypatch.setattr(trajectory_store, "_BATCH_ROWS", 7)
    parts = list(trajectory_store.stream([folder], ("eps_id", "obs")))
    assert len(parts) > 10
    lengths = []
    for part in parts:
        assert part.column_names == ["terminateds", "eps_id", "obs"]
        lengths += trajectory_store.episode_lengths(part).tolist()
    assert lengths == [len(trajectory.actions) for trajectory in trajectories]
    observations_ND = np.concatenate([trajectory_store.vectors(part, "obs") for part in parts])
    expected_ND = np.concatenate([trajectory.observations for trajectory in trajectories])
    np.testing.assert_array_equal(observations_ND, expected_ND)


def test_seconds_are_shares_of_what_passed(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    observer = Observer(ObservationConfig(), SIZES, config.engine.actions)
    collector = Collector(Engine(ToyBackbone(), config.engine), observer, make_client(), slots=8, groups=2)
    target = Target({"clip_score": 0.0, "aesthetic": 0.0, "image_reward": 0.0})
    requests = [TrainingRequest(EpisodeRequest("a", seed), (seed,), target) for seed in range(32)]
    gathered = collector.collect(requests, aimless, config.reward)
    rows = trajectory_store.to_table(gathered, 0).to_pylist()
    for trajectory in gathered:
        spent = trajectory.seconds_spent
        assert len(spent) == len(trajectory.actions)
        assert 0.0 < spent[0] <= spent[-1] <= trajectory.seconds
        assert spent == sorted(spent)
    total = sum(row["episode_seconds"] for row in rows if row["terminateds"])
    assert collector.times.denoising < total <= collector.times.wall * 1.001


def test_previews_are_what_was_seen_at_each_decision(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    observer = Observer(ObservationConfig(), ObservationSizes(2, 3), config.engine.actions)
    collector = Collector(
        Engine(ToyBackbone(), config.engine),
        observer,
        make_client(),
        slots=4,
        groups=1,
        record_previews=True,
    )
    target = Target({"clip_score": 0.0, "aesthetic": 0.0, "image_reward": 0.0})
    requests = [TrainingRequest(EpisodeRequest("a", seed), (seed,), target) for seed in range(8)]
    rows = trajectory_store.to_table(collector.collect(requests, aimless, config.reward), 0).to_pylist()
    for row in rows:
        image_HWC = np.asarray(Image.open(io.BytesIO(row["preview"])))
        assert image_HWC.shape == (8, 8, 3)
        assert (image_HWC == (255 if row["obs"][0] > 0 else 0)).all(), "a good image is white"


def test_without_a_critic_there_is_no_value_and_without_asking_no_preview(
    stored: tuple[list[Trajectory], Path],
) -> None:
    table = trajectory_store.read(stored[1])
    assert table["values"].null_count == table["preview"].null_count == table.num_rows


def test_another_version_a_damaged_file_and_half_an_episode_are_refused(
    stored: tuple[list[Trajectory], Path],
) -> None:
    _, folder = stored
    file = trajectory_store.files([folder])[0]
    whole = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(whole.slice(0, whole.num_rows - 1), file)
    with pytest.raises(UserError, match=r"iteration-000000.*ends within an episode"):
        list(trajectory_store.stream([folder]))
    older = whole.replace_schema_metadata({"addiffusion_schema": "2"})
    pyarrow.parquet.write_table(older, file)
    with pytest.raises(UserError, match=r"iteration-000000.*schema version 2, expected 3") as caught:
        trajectory_store.read(folder)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"iteration-000000.*damaged"):
        trajectory_store.read(folder)


def test_what_an_interrupted_run_does_again_is_dropped(stored: tuple[list[Trajectory], Path]) -> None:
    _, folder = stored
    trajectory_store.discard_from(folder, lambda runner: 1)
    assert [file.name for file in trajectory_store.files([folder])] == ["iteration-000000-runner-001.parquet"]
    assert read_origin(folder).actions[1] == "stop"


def test_folders_of_two_worlds_are_not_mixed(tmp_path: Path) -> None:
    one, other = (store(gather(aimless, tmp_path, 8, seed=1), tmp_path / name) for name in ("one", "other"))
    assert common_origin([one, other], same_reward=True) == read_origin(one)
    content = json.loads((other / ORIGIN_FILE).read_text())
    content["config"]["reward"]["c_nfe"] = 0.5
    (other / ORIGIN_FILE).write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"other: reward.c_nfe is 0.5, that of .*one is 0.02; learn from them"
    ):
        common_origin([one, other], same_reward=True)
    assert common_origin([one, other], same_reward=False) == read_origin(one), (
        "to imitate, nothing is compared"
    )
    content["metadata"]["engine"]["num_steps"] = 7
    (other / ORIGIN_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"other: engine.num_steps is 7, that of .*one is 5"):
        common_origin([one, other], same_reward=False)
    content["mean"] = content["mean"][1:]
    (other / ORIGIN_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        read_origin(other)
    (other / ORIGIN_FILE).unlink()
    with pytest.raises(UserError, match=r"no origin.json there"):
        read_origin(other)
