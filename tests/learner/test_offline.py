"""Learning from stored episodes alone, by RLlib: what is left behind, and how good it is in the toy world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from actors import trajectory_store
from actors.errors import UserError
from actors.policy import PolicyNetwork, load_policy
from actors.policy_folder import read_trained_policy
from learner import registry
from learner.champions import Champions
from learner.config import RegistryConfig
from learner.json_lines import read_rows
from learner.mlflow_run import read_config
from learner.offline import train_offline
from learner.offline_config import OfflineConfig
from learner.offline_data import is_held_out, survey
from tests.learner.stored import PROMPTS, aimless, by_network, gather, mean_return, scripted, store
from tests.learner.toy import ToyBackbone
from tune_configs.loading import settings_from_yaml

pytestmark = pytest.mark.usefixtures("ray_session")

SHORT = OfflineConfig(
    iterations=4,
    updates_per_iteration=60,
    minibatch_size=256,
    hidden=(32,),
    lr=5e-3,
    held_out=0.0,
    registry=RegistryConfig(enabled=False),
)


def offline(folder: Path, runs_dir: Path, algorithm: str, **changes: object) -> OfflineConfig:
    options = {"algorithm": algorithm, "trajectories": str(folder), "name": algorithm, **changes}
    return replace(SHORT, runs_dir=str(runs_dir), **options)  # type: ignore[arg-type]


def accuracy(network: PolicyNetwork, folder: Path) -> float:
    rows = trajectory_store.read(folder)
    observations_ND = trajectory_store.vectors(rows, "obs")
    logits_NA = by_network(network)(observations_ND, observations_ND[:, -network.num_actions :] > 0.5)
    return float((logits_NA.argmax(axis=1) == rows["actions"].to_numpy()).mean())


def test_cloning_reproduces_a_script_and_leaves_a_run_behind(tmp_path: Path) -> None:
    learnt = store(gather(scripted, tmp_path, 256, seed=1), tmp_path / "behaviour" / "trajectories")
    unseen = store(gather(scripted, tmp_path, 128, seed=2), tmp_path / "unseen")
    config = offline(learnt.parent, tmp_path, "bc", held_out=0.3, registry=RegistryConfig())
    result = train_offline(config)
    network, metadata = load_policy(result.policy_dir)
    assert accuracy(network, unseen) >= 0.98
    assert metadata["offline"] == {"algorithm": "bc", "behaviour": "toy"}
    rows = read_rows(result.run_dir / "progress.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["held_out_accuracy"] >= 0.98
    assert rows[-1]["held_out_nll"] < rows[0]["held_out_nll"]
    # What acts, evaluates and serves takes it as it takes a trained run.
    trained = read_trained_policy(result.policy_dir)
    engine, _, opened = trained.open(ToyBackbone())
    assert engine.action_names == ("continue", "stop", "look", "restart")
    assert settings_from_yaml(result.run_dir / "config.yaml").run.name == "bc"
    assert yaml.safe_load((result.run_dir / "offline.yaml").read_text())["algorithm"] == "bc"
    name = registry.model_name(trained.backbone.name)
    listed, _ = registry.load(f"{name}@candidate", uri=registry.tracking_uri(tmp_path))
    for one, other in zip(listed.parameters(), opened.parameters(), strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy())
    registered = Champions(registry.tracking_uri(tmp_path))
    kept = registered.config(registered.find(f"{name}@candidate"))
    assert kept == read_config(result.run_dir), "by which it is painted with and evaluated"
    with pytest.raises(UserError, match=r"name=bc: .* holds a run already"):
        train_offline(config)


def test_marwil_is_better_than_those_it_learnt_from_and_than_cloning_them(tmp_path: Path) -> None:
    good = gather(scripted, tmp_path, 128, seed=1)
    mixture = good + gather(aimless, tmp_path, 384, seed=2)
    folder = store(mixture, tmp_path / "mixture")
    drawn, networks = {}, {}
    for name, algorithm in (("bc", "bc"), ("marwil", "marwil"), ("again", "marwil")):
        result = train_offline(offline(folder, tmp_path, algorithm, name=name))
        networks[name], _ = load_policy(result.policy_dir)
        drawn[name] = mean_return(gather(by_network(networks[name]), tmp_path, 512, seed=3))
    behaviour, best = mean_return(mixture), mean_return(good)
    assert drawn["bc"] == pytest.approx(behaviour, abs=0.3 * (best - behaviour)), "a clone is as good"
    assert drawn["marwil"] > behaviour + 0.25 * (best - behaviour)
    assert drawn["marwil"] > drawn["bc"] + 0.25 * (best - behaviour)
    for one, other in zip(networks["marwil"].parameters(), networks["again"].parameters(), strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy()), "a seed fixes what is learnt"


def test_held_out_prompts_are_counted_apart_and_several_folders_together(tmp_path: Path) -> None:
    one = gather(aimless, tmp_path, 64, seed=1)
    other = gather(scripted, tmp_path, 32, seed=2)
    folders = [store(one, tmp_path / "one"), store(other, tmp_path / "other")]
    found = survey(folders, 0.3, 1.0)
    out = [prompt for prompt in PROMPTS if is_held_out(prompt, 0.3)]
    assert 0 < len(out) < 8, "the prompts of this test are on both sides"
    learnt = [each for each in one + other if each.training.request.prompt not in out]
    assert found.episodes == len(learnt)
    assert found.held_out_episodes == 96 - len(learnt)
    assert found.decisions == sum(len(each.actions) for each in learnt)
    assert found.mean_return == pytest.approx(mean_return(learnt), abs=1e-5)
    assert found.held_out is not None
    measured = [each for each in one + other if each.training.request.prompt in out]
    assert len(found.held_out.actions_N) == sum(len(each.actions) for each in measured)
    first = found.held_out.returns_N[0]
    assert first == pytest.approx(sum(measured[0].rewards), abs=1e-5)
    assert np.array_equal(found.held_out.observations_ND[0], measured[0].observations[0])


def test_held_out_decisions_are_of_the_whole_time_and_not_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [
        store(gather(policy, tmp_path, 96, seed=seed), tmp_path / name)
        for name, policy, seed in (("early", aimless, 1), ("late", scripted, 2))
    ]
    whole = survey(folders, 0.3, 1.0).held_out
    late = survey(folders[1:], 0.3, 1.0).held_out
    assert whole is not None
    assert late is not None
    monkeypatch.setattr("learner.offline_data._MEASURED", 30)
    some = survey(folders, 0.3, 1.0).held_out
    assert some is not None
    every = -(-len(whole.actions_N) // 30)
    assert every > 1
    np.testing.assert_array_equal(some.observations_ND, whole.observations_ND[::every])
    np.testing.assert_array_equal(some.actions_N, whole.actions_N[::every])
    np.testing.assert_array_equal(some.returns_N, whole.returns_N[::every])
    assert any((row == late.observations_ND).all(axis=1).any() for row in some.observations_ND)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "bc", "trajectories": ()}, "trajectories is empty"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"held_out": 0.9}, "held_out=0.9"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_an_impossible_value_is_one_line(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        replace(SHORT, **{"trajectories": "somewhere", **changes}).validate()  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)
