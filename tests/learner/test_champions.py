"""Champions: they come by promotion, go by rollback, the way back is never lost. A real sqlite registry."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from actors.errors import UserError
from learner import registry
from learner.champions import CHAMPION, HISTORY_TAG, Champions, Change, champions_before
from tests.learner.test_registry import a_policy

NAME = "addiffusion-toy"
CONFIG = {"name": "run", "ppo": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def four_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlflow.db with four versions of one model; the last is the candidate."""
    runs = tmp_path_factory.mktemp("runs")
    a_policy(runs / "policy")
    uri = registry.tracking_uri(runs)
    registry.register(
        runs / "policy",
        name=NAME,
        uri=uri,
        run_id=registry.new_run(uri, "addiffusion", "run", CONFIG),
        metrics={"nfe": 7.5},
        step=1,
        config=CONFIG,
        tags={"backbone": "toy"},
        alias=None,
    )
    client = MlflowClient(tracking_uri=uri)
    first = client.get_model_version(NAME, "1")
    for _ in range(3):  # the same files again: what a version holds does not matter here
        client.create_model_version(NAME, first.source, run_id=first.run_id)
    client.set_registered_model_alias(NAME, "candidate", "4")
    return runs / "mlflow.db"


@pytest.fixture
def champions(four_versions: Path, tmp_path: Path) -> Champions:
    """The same registry, a copy of one's own."""
    shutil.copy(four_versions, tmp_path / "mlflow.db")
    return Champions(registry.tracking_uri(tmp_path))


def champion_of(champions: Champions) -> str | None:
    version = champions.champion(NAME)
    return None if version is None else version.version


def test_several_rollbacks_go_back_through_the_champions(champions: Champions) -> None:
    assert champion_of(champions) is None
    for number in ("1", "3", "2"):
        champions.promote(champions.find(f"{NAME}/{number}"), f"better {number}")
        assert champion_of(champions) == number
    assert champions.rollback(NAME, "too slow").version == "3"
    champions.promote(champions.find(f"{NAME}/4"), "mended")
    assert [champions.rollback(NAME, "").version for _ in range(2)] == ["3", "1"]
    assert champion_of(champions) == "1"
    with pytest.raises(UserError, match="no champion before"):
        champions.rollback(NAME, "")
    assert champion_of(champions) == "1"
    told = [(change.action, change.before, change.version) for change in champions.history(NAME)]
    assert told == [
        ("promote", None, "1"),
        ("promote", "1", "3"),
        ("promote", "3", "2"),
        ("rollback", "2", "3"),
        ("promote", "3", "4"),
        ("rollback", "4", "3"),
        ("rollback", "3", "1"),
    ]
    assert "promoted_at" in champions.find(f"{NAME}/2").tags


def test_a_death_between_alias_and_history_loses_no_way_back(champions: Champions) -> None:
    champions.promote(champions.find(f"{NAME}/1"), "first")
    MlflowClient(tracking_uri=champions.uri).set_registered_model_alias(NAME, CHAMPION, "3")
    assert champions.rollback(NAME, "").version == "1"


def test_a_version_that_is_promoted_again_is_twice_in_the_way_back() -> None:
    moves = [Change("", "promote", version, None, "") for version in "ABA"]
    assert champions_before(moves, "A") == ["A", "B"]
    moves.append(Change("", "rollback", "B", "A", ""))
    assert champions_before(moves, "B") == ["A"]
    assert champions_before([], None) == []


def test_a_forced_promotion_is_recorded(champions: Champions) -> None:
    champions.promote(champions.find(NAME), "the demo is today", forced=True)
    assert champions.find(f"{NAME}@champion").tags["forced"] == "the demo is today"
    stored = MlflowClient(tracking_uri=champions.uri).get_registered_model(NAME).tags[HISTORY_TAG]
    assert [Change(**entry) for entry in json.loads(stored)] == champions.history(NAME)
    assert asdict(champions.history(NAME)[0])["forced"] is True


def test_names_aliases_and_versions_are_found_and_others_are_named(champions: Champions) -> None:
    assert champions.find(NAME).version == "4", "the candidate, as there is no champion"
    champions.promote(champions.find(f"{NAME}/2"), "better")
    assert champions.find(NAME).version == champions.find(f"{NAME}@champion").version == "2"
    assert [version.version for version in champions.versions(NAME)] == ["4", "3", "2", "1"]
    for reference in (f"{NAME}/9", f"{NAME}@nobody", "nothing", "nothing@champion"):
        with pytest.raises(UserError, match=f"model '{reference.partition('@')[0]}"):
            champions.find(reference)


def test_a_version_is_found_by_its_weights_and_knows_its_run(champions: Champions, tmp_path: Path) -> None:
    a_policy(tmp_path / "policy")
    version = champions.by_weights(registry.weights_digest(tmp_path / "policy"))
    assert version is not None
    assert version.label == f"{NAME}/1"
    assert champions.metrics(version) == {"nfe": 7.5}
    assert champions.params(version) == {"name": "run", "ppo.lr": "0.001"}
    assert champions.config(version) == {"name": "run", "ppo": {"lr": 1e-3}}
    a_policy(tmp_path / "other", seed=5)
    assert champions.by_weights(registry.weights_digest(tmp_path / "other")) is None


def test_other_peoples_models_on_the_same_server_are_left_alone(champions: Champions, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=champions.uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", str(tmp_path / "theirs"))  # of no run
    for number in range(110):  # more than MLflow gives at once
        client.create_registered_model(f"{registry.PREFIX}{number:03d}")
    assert len(champions.models()) == 111
    assert NAME in champions.models()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(UserError, match="policy=theirs/1: holds no policy"):
        registry.policy_folder("theirs/1", uri=champions.uri)


def test_a_registry_that_is_not_there_is_one_line_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no registry"):
        Champions(registry.tracking_uri(tmp_path))
    assert list(tmp_path.iterdir()) == []
