"""`addiffusion registry`: from two registered policies to a champion and back, on a tiny world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.contracts import EpisodeRequest
from actors.policy import load_policy
from actors.policy_folder import read_trained_policy
from actors.sampler import AdaptiveSampler
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.generate import Job, generate
from evaluation.methods import read_policy
from learner import registry
from learner.champions import Champions
from rewards_service.arithmetic import HELD_OUT_PRICE
from tests.cluster.conftest import Say
from tests.evaluation.fakes import open_fake_bench, saved_policy
from tune_configs.loading import compose

NAME = "addiffusion-fake"
PROMPTS = [f"prompt {index}" for index in range(24)]


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlflow.db with two policies; the second is the candidate."""
    runs = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        registry.register(
            saved_policy(runs / f"policy-{seed}", seed),
            name=NAME,
            uri=registry.tracking_uri(runs),
            run_id=registry.new_run(registry.tracking_uri(runs), "addiffusion", f"run-{seed}", {}),
            metrics={"nfe": 8.0 + seed},
            step=1,
            config=compose([f"name=run-{seed}", f"backbone.scorers=models-{seed}"]).run.as_dict(),
            tags={"backbone": "fake-1"},
            alias="candidate",
        )
    return runs / "mlflow.db"


@pytest.fixture
def opened(folder: Path, two_versions: Path, monkeypatch: pytest.MonkeyPatch) -> list[Bench]:
    """runs/ with a registry of one's own and prompts.txt; gives the benches that commands have opened."""
    benches: list[Bench] = []

    def recipe(backbone: object, config: object) -> Callable[[], Bench]:
        def open_bench() -> Bench:
            benches.append(open_fake_bench())
            return benches[-1]

        return open_bench

    (folder / "runs").mkdir()
    shutil.copy(two_versions, folder / "runs" / "mlflow.db")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    for module in ("promotion", "stopping_calibration"):
        monkeypatch.setattr(f"cluster.{module}.held_out_recipe", recipe)
    return benches


@pytest.fixture
def judges(opened: list[Bench], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The reward models that commands have asked for."""
    asked: list[object] = []

    def recipe(backbone: object, config: EvaluationConfig) -> Callable[[], Bench]:
        asked.append(config.scorers)
        return open_fake_bench

    for module in ("promotion", "stopping_calibration"):
        monkeypatch.setattr(f"cluster.{module}.held_out_recipe", recipe)
    return asked


def registered() -> Champions:
    return Champions(registry.tracking_uri(Path("runs")))


def utility(policy_dir: Path, requests: list[EpisodeRequest]) -> float:
    """The held-out utility, from images made here."""
    made = generate(open_fake_bench(), Job(read_policy(policy_dir, greedy=True, seed=0), tuple(requests), 4))
    return float(np.mean([row.quality - HELD_OUT_PRICE * row.cost for row in made.rows]))


def test_a_better_candidate_gets_through_the_gate_and_a_worse_one_does_not(
    say: Say, opened: list[Bench], two_versions: Path
) -> None:
    code, out, _ = say("registry", "promote", f"{NAME}/1", "--force", "--reason", "it is the first", "--json")
    assert (code, json.loads(out)["forced"]) == (0, True)
    asked = ("--prompts", "prompts.txt", "--seeds", "2", "--json")
    code, out, _ = say("registry", "promote", NAME, "--margin", "10", *asked)
    told = json.loads(out)
    assert len(opened) == 1, "one bench measures both"
    rows = read_rows_of(registered(), "2")
    requests = [EpisodeRequest(row.prompt, row.seed) for row in rows]
    assert {request.prompt for request in requests} == set(PROMPTS)
    own = [utility(two_versions.parent / f"policy-{seed}", requests) for seed in (0, 1)]
    assert told["difference"] == pytest.approx(own[1] - own[0], abs=1e-6)
    assert [
        told["methods"][name]["utility"] for name in ("champion, version 1", "version 2")
    ] == pytest.approx(own, abs=1e-6)
    better = own[1] > own[0]
    assert (code, told["promoted"]) == ((0, True) if better else (1, False))
    # The other way round it has to come out the other way, from what is stored by now.
    winner, loser = ("2", "1") if better else ("1", "2")
    assert say("registry", "promote", f"{NAME}/{winner}", "--force", "--reason", "test")[0] == 0
    code, out, _ = say("registry", "promote", f"{NAME}/{loser}", "--margin", "10", *asked)
    assert (code, json.loads(out)["promoted"]) == (1, False)
    assert "lower than the champion" in json.loads(out)["reason"]
    assert len(opened) == 1, "nothing was measured twice"
    champion = registered().champion(NAME)
    assert champion is not None
    assert champion.version == winner


def read_rows_of(champions: Champions, version: str) -> list[Any]:
    from evaluation.rows import read_rows

    found = champions.find(f"{NAME}/{version}")
    (path,) = {entry.path for entry in champions._client.list_artifacts(found.run_id, "held_out")}
    file = champions.attached(found, path)
    assert file is not None
    return read_rows(file)


def test_policies_are_judged_by_the_reward_models_they_were_trained_with(
    say: Say, folder: Path, judges: list[object]
) -> None:
    """Not by those of the embedded world, which know nothing of another model's images."""
    run = folder / "runs" / "mine"
    saved_policy(run / "policy")
    (run / "config.yaml").write_text(compose(["name=mine", "backbone.scorers=models-of-mine"]).to_yaml())
    asked = ("--prompts", "prompts.txt", "--json")
    for command in (("promote", NAME), ("calibrate", f"{NAME}/1"), ("calibrate", "mine")):
        say("registry", *command, *asked)
    assert judges == ["models-1", "models-0", "models-of-mine"]


def test_the_first_champion_has_to_beat_fixed_schedules(say: Say, opened: list[Bench]) -> None:
    """An untrained policy does not: its prompts are too few to show anything."""
    Path("few.txt").write_text("one\ntwo\nthree\n")
    code, out, _ = say("registry", "promote", NAME, "--prompts", "few.txt", "--seeds", "1")
    assert code == 1
    assert "refused: 3 prompts show nothing" in out
    assert "dpmpp-" in out
    assert registered().champion(NAME) is None


def test_rollback_list_and_show(say: Say, opened: list[Bench]) -> None:
    for version in ("1", "2"):
        assert say("registry", "promote", f"{NAME}/{version}", "--force", "--reason", "test")[0] == 0
    assert "champion already" in say("registry", "promote", f"{NAME}/2")[1]
    listed = json.loads(say("registry", "list", "--json")[1])
    assert [(row["version"], row["aliases"], row["nfe"]) for row in listed] == [
        ("2", ["candidate", "champion"], 9.0),
        ("1", [], 8.0),
    ]
    assert NAME in say("registry", "list")[1]
    code, out, _ = say("registry", "rollback", NAME, "--reason", "worse in use", "--json")
    assert (code, json.loads(out)["version"], json.loads(out)["before"]) == (0, "1", "2")
    assert say("registry", "rollback", NAME)[0] == 2
    shown = json.loads(say("registry", "show", NAME, "--json")[1])
    assert (shown["version"], shown["policy"]["backbone"]) == ("1", "fake-1")
    assert [change["action"] for change in shown["history"]] == ["promote", "promote", "rollback"]
    assert "worse in use" in say("registry", "show", NAME)[1]
    assert not opened


def test_an_export_is_whole_loads_the_same_and_overwrites_nothing(
    say: Say, folder: Path, opened: list[Bench], two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert say("registry", "export", f"{NAME}/1", "out")[0] == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "README.md",
        "policy.json",
        "policy.safetensors",
        "registered.json",
    ]
    exported, _ = load_policy(folder / "out")
    original, _ = load_policy(two_versions.parent / "policy-0")
    for name, values in original.state_dict().items():
        assert torch.equal(exported.state_dict()[name], values)
    assert (
        read_trained_policy(folder / "out").engine
        == read_trained_policy(two_versions.parent / "policy-0").engine
    )
    sampler = AdaptiveSampler.from_pretrained(folder / "out", scorer=lambda images, prompts: {})
    assert sampler.policy.backbone_identity == "fake-1"
    before = (folder / "out" / "policy.safetensors").read_bytes()
    code, _, err = say("registry", "export", f"{NAME}/2", "out")
    assert code == 2
    assert "is there already" in err
    assert (folder / "out" / "policy.safetensors").read_bytes() == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.export.shutil.copyfile", full)
    assert say("registry", "export", f"{NAME}/1", "half")[0] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["out", "prompts.txt", "runs"]


def test_a_calibrated_run_stops_by_its_certificate(say: Say, folder: Path, opened: list[Bench]) -> None:
    policy_dir = saved_policy(folder / "runs" / "mine" / "policy")
    (folder / "runs" / "mine" / "config.yaml").write_text(compose(["name=mine"]).to_yaml())
    asked = ("registry", "calibrate", "mine", "--prompts", "prompts.txt", "--seeds", "2")
    before = (policy_dir / "policy.safetensors").read_bytes()
    code, out, _ = say(*asked, "--delta", "0.01")
    assert code == 1
    assert "299 are needed" in out, "0.99^299 < 0.05 < 0.99^298"
    assert (policy_dir / "policy.safetensors").read_bytes() == before
    code, out, _ = say(*asked, "--delta", "0.2", "--json")
    certificate = json.loads(out)["certificate"]
    assert code == 0
    trained = read_trained_policy(policy_dir)
    assert trained.stop_threshold == certificate["stop_threshold"]
    assert certificate["nfe"] < certificate["nfe_never_stopping"]
    assert certificate["loss"] <= certificate["upper_bound"] <= 0.2
    assert (
        AdaptiveSampler(trained, lambda images, prompts: {}).policy.stop_threshold == trained.stop_threshold
    )
    decider = read_policy(policy_dir, greedy=True, seed=0).open(open_fake_bench()).decider
    assert getattr(decider, "stop_threshold", None) == certificate["stop_threshold"]


def test_calibrating_a_registered_model_makes_a_new_candidate(say: Say, opened: list[Bench]) -> None:
    asked = ("--prompts", "prompts.txt", "--delta", "0.2", "--json")
    code, out, _ = say("registry", "calibrate", f"{NAME}/1", *asked)
    told = json.loads(out)
    assert (code, told["version"]) == (0, "3")
    version = registered().find(f"{NAME}@candidate")
    assert version.version == "3"
    assert version.tags["calibrated_from"] == "1"
    assert json.loads(version.tags["certificate"]) == told["certificate"]
    uri = registry.tracking_uri(Path("runs"))
    thresholds = [
        read_trained_policy(registry.policy_folder(f"{NAME}/{number}", uri=uri)).stop_threshold
        for number in (1, 3)
    ]
    assert thresholds == [None, told["certificate"]["stop_threshold"]]
    assert say("registry", "export", f"{NAME}/3", "out")[0] == 0
    assert "with 95% confidence" in " ".join(Path("out/README.md").read_text().split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("promote", NAME, "--force"), ("--reason",)),
        (("promote", f"{NAME}/9"), (f"{NAME}/9", "there is 2, @candidate, 1")),
        (("promote", NAME), ("--prompts", "'fake'")),
        (("promote", NAME, "--prompts", "none.txt"), ("--prompts", "none.txt")),
        (("show", "nothing"), ("nothing",)),
        (("rollback", NAME), (NAME, "no champion before")),
        (("export", NAME, "no/such/folder"), ("FOLDER=no/such/folder",)),
        (("list", "--runs-dir", "elsewhere"), ("no registry",)),
        (("calibrate", NAME, "--delta", "0"), ("--delta=0",)),
        (("calibrate", NAME, "--delta", "2"), ("--delta=2", "--largest-loss")),
        (("calibrate", NAME, "--confidence", "95"), ("--confidence=95",)),
        (("calibrate", NAME, "--largest-loss", "-1"), ("--largest-loss=-1",)),
        (("calibrate", NAME, "--largest-loss", "inf"), ("--largest-loss=inf",)),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], say: Say, opened: list[Bench]
) -> None:
    code, out, err = say("registry", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("content", [b"not a database at all", b"SQLite format 3\0" + bytes(range(256)) * 20])
def test_a_damaged_registry_is_one_line_that_names_it(say: Say, folder: Path, content: bytes) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "mlflow.db").write_bytes(content)
    for arguments in (("registry", "list"), ("generate", "a dog", "--model", f"{NAME}@champion")):
        code, out, err = say(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "runs/mlflow.db" in err
        assert "database" in err


def test_a_registry_that_may_not_be_read_is_one_line_at_once(
    say: Say, folder: Path, opened: list[Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is kept from a superuser.
    monkeypatch.setattr("os.access", lambda path, mode, **_: Path(path).name != "mlflow.db")
    code, out, err = say("registry", "list")
    assert (code, out) == (2, "")
    assert err.endswith("runs/mlflow.db cannot be read; change its permissions\n")
    assert err.count("\n") == 1


@pytest.mark.timeout(60)  # MLflow itself would take minutes
@pytest.mark.parametrize("uri", ["mlruns", "http://127.0.0.1:1", "postgresql://127.0.0.1/x"])
def test_a_registry_that_mlflow_cannot_reach_is_one_line_in_time(say: Say, folder: Path, uri: str) -> None:
    code, out, err = say("registry", "list", "--tracking-uri", uri)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"--tracking-uri={uri}: " in err


def test_an_evaluation_is_kept_with_the_version_that_has_these_weights(
    say: Say, folder: Path, opened: list[Bench], two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = {"hypotheses": {"H2": {"estimate": 0.02, "ci95": [0.01, 0.03]}}}

    def evaluate(policy_dir: Path, run_dir: Path, *_: object, **__: object) -> dict[str, Any]:
        (run_dir / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr("evaluation.evaluate.evaluate", evaluate)
    monkeypatch.setattr("evaluation.headline.opening_sentence", lambda summary: "Saved.")
    monkeypatch.setattr("evaluation.report.write_report", lambda run_dir: run_dir / "report.html")
    run_dir = folder / "runs" / "mine"
    shutil.copytree(two_versions.parent / "policy-0", run_dir / "policy")
    (run_dir / "config.yaml").write_text(compose(["name=mine"]).to_yaml())
    assert say("evaluate", "mine")[0] == 0
    listed = {row["version"]: row for row in json.loads(say("registry", "list", "--json")[1])}
    assert [listed["1"][key] for key in ("h2", "h2_low", "h2_high")] == [0.02, 0.01, 0.03]
    assert listed["2"]["h2"] is None
    assert "+0.010 to +0.030" in say("registry", "list")[1]
    assert registered().attached(registered().find(f"{NAME}/1"), "evaluation/summary.json") is not None
