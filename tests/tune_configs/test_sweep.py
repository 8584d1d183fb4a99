"""Whole sweeps in one Ray session: what they leave, what they survive, what the next one finds."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from mlflow.tracking import MlflowClient

from actors.engine import Engine
from actors.errors import UserError
from actors.observations import ObservationSizes, Observer
from actors.policy import PolicyDecider, load_policy
from actors.references import reference_config
from actors.region_head import RemainingChangeHead, save_region_head
from actors.rollout import rollout
from evaluation.baselines.rules import ContinueDecider
from learner import session
from learner.config import RunConfig
from learner.json_lines import read_rows
from learner.placement import Node, lack
from rewards_service import service
from rewards_service.actor import PoolSpec
from rewards_service.pool_config import PoolConfig
from tests.learner.toy import ToyBackbone, ToyScorer, toy_world
from tests.tune_configs.outcomes import finished, spec_of
from tests.tune_configs.toy_sweep import TOY, run, toy_sweep
from tune_configs.ledger import FILE, Ledger, read_outcomes
from tune_configs.mlflow_sweep import SweepTracking
from tune_configs.objective import Measured, judged_requests
from tune_configs.plan import Place, run_config, trial_config
from tune_configs.results import table
from tune_configs.sweep import (
    Prepared,
    prepare,
    run_sweep,
    stored,
    trial_bundles,
    trial_demands,
    write_sweep,
)
from tune_configs.trial import ERROR_FILE

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(900)]

PATIENCE_S = 400.0
"""For processes to start, on a machine that has much else to do."""
LR = {"ppo.lr": {"grid": [1.0e-4, 1.0e-3, 1.0e-2]}}


def judged_again(prepared: Prepared, trial: str) -> Measured:
    """A trial's policy, from its folder, on the judge's prompts, as it would be used: one rollout here."""
    spec = next(spec for spec in prepared.specs if spec.id == trial)
    config = trial_config(spec, Place(prepared.folder, prepared.tracking_uri))
    network, _ = load_policy(config.run_dir / "policy")
    engine, scorer = Engine(ToyBackbone(), config.engine), ToyScorer()
    observer = Observer(config.observation, ObservationSizes(2, 3), engine.action_names)
    judge = prepared.sweep.config.judge
    requests = judged_requests(config, judge)
    decider = PolicyDecider(network, observer)
    episodes = rollout(engine, decider, observer, requests, slots=3, scorer=scorer.score)
    images = engine.backbone.decode(torch.stack([episode.latents_CHW for episode in episodes]))
    return Measured(
        quality=tuple(scorer.score(images, [])["image_reward"].tolist()),
        nfe=tuple(float(episode.nfe) for episode in episodes),
        cost=tuple(float(episode.cost) for episode in episodes),
        tiers=tuple(request.tier for request in requests[:: judge.seeds]),
    )


def test_a_sweep_judges_compares_fails_in_part_and_is_gone_on_with(tmp_path: Path) -> None:
    """One failing variant beside two that learn; then the same again, mended."""
    head = tmp_path / "head.safetensors"
    variants = {
        "slow": ["ppo.lr=1e-4"],
        "broken": [
            "engine.actions=[continue,stop,refine]",
            "engine.refine_region=learned",
            f"engine.refine_head={head}",
        ],
        "fast": ["ppo.lr=1e-2"],
    }
    content = {"variants": variants, "reference": "slow", "max_concurrent": 1}
    prepared = toy_sweep(tmp_path / "mixed", content)
    outcomes = run(prepared)
    assert {trial: outcome.status for trial, outcome in outcomes.items()} == {
        "toy-slow-s0": "finished",
        "toy-broken-s0": "failed",
        "toy-fast-s0": "finished",
    }
    error = outcomes["toy-broken-s0"].error
    assert error is not None
    assert "head.safetensors" in error
    assert "Traceback" in (prepared.folder / "toy-broken-s0" / ERROR_FILE).read_text()
    for trial in ("toy-slow-s0", "toy-fast-s0"):
        assert outcomes[trial].measured == judged_again(prepared, trial)
        assert [row["iteration"] for row in read_rows(prepared.folder / trial / "progress.jsonl")] == [1, 2]

    rows = {row.variant: row for row in table(prepared.sweep, prepared.specs, outcomes)}
    assert rows["broken"].errors == (error,)
    assert rows["fast"].p_holm is not None

    # The same process ran all of them: what the first trial asked the denoiser, the last one remembers.
    first, last = (
        read_rows(prepared.folder / trial / "progress.jsonl")[0] for trial in ("toy-slow-s0", "toy-fast-s0")
    )
    assert last["remembered_share"] > first["remembered_share"]

    before = (prepared.folder / FILE).read_bytes()
    tracking = SweepTracking(prepared.folder, prepared.sweep, prepared.tracking_uri, "sweeps")
    tracking.send(outcomes)
    SweepTracking(prepared.folder, prepared.sweep, prepared.tracking_uri, "sweeps").send(outcomes)
    client = MlflowClient(tracking_uri=prepared.tracking_uri)
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    runs = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"mixed"}, "the children are where their trainings' own runs would be"
    parent = runs["mixed"].info.run_id
    assert runs["mixed"].info.status == "FINISHED"
    own = client.get_experiment_by_name("addiffusion")
    assert own is not None
    children = {found.info.run_name: found for found in client.search_runs([own.experiment_id])}
    assert set(children) == {"toy-slow-s0", "toy-broken-s0", "toy-fast-s0"}
    assert all(found.data.tags["mlflow.parentRunId"] == parent for found in children.values())
    broken = children.pop("toy-broken-s0")
    assert broken.info.status == "FAILED"
    assert broken.data.tags["error"] == error
    for trial, found in children.items():
        assert found.info.status == "FINISHED"
        assert found.data.metrics["judged/utility"] == pytest.approx(outcomes[trial].metric("utility"))
        assert len(client.get_metric_history(found.info.run_id, "return")) == 2

    mended, overrides, _ = stored(prepared.folder)
    assert overrides == TOY
    save_region_head(head, RemainingChangeHead(1), backbone="toy")
    again = run(prepare(mended, overrides, prepared.folder, prepared.tracking_uri))
    assert again["toy-broken-s0"].status == "finished"
    after = (prepared.folder / FILE).read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == before.count(b"\n") + 1, "only the failed trial was run again"
    SweepTracking(prepared.folder, prepared.sweep, prepared.tracking_uri, "sweeps").send(again)
    runs_now = {found.info.run_name: found for found in client.search_runs([own.experiment_id])}
    assert len(runs_now) == 3
    assert runs_now["toy-broken-s0"].info.status == "FINISHED"
    assert runs_now["toy-broken-s0"].data.tags["status"] == "finished"


def processes(title: str) -> list[psutil.Process]:
    """This session's Ray workers with such a title; Tune wraps the class of its trials."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if re.match(f"ray::{title}", " ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def served_world(name: str, config: RunConfig) -> Iterator[session.World]:
    """The toy's backbone, and its scorer in a real service."""
    client = functools.partial(service.connect, name, deadline_s=300.0)
    yield session.World(ToyBackbone, client, "toy")


def build_toy_scorers() -> list[ToyScorer]:
    return [ToyScorer()]


@pytest.mark.slow
def test_a_killed_trial_a_killed_env_runner_and_a_killed_rewards_service_lose_no_trial(
    tmp_path: Path,
) -> None:
    content = {"space": LR, "max_concurrent": 1, "cpus_per_trial": 0.5}
    runners = ("resources.num_env_runners=1", "ppo.iterations=4")
    prepared = toy_sweep(tmp_path / "faults", content, overrides=runners)
    name = "toy-sweep-faults"
    spec = PoolSpec("all", "toy", build_toy_scorers, PoolConfig(replicas=1, cpus=0.1, gpus=0.0))
    replicas = service.start(name, [spec])
    titles = iter([r".*(Trial|Trainable|_Inner)", "DiffusionEnvRunner", "RewardActor"])
    killed: dict[str, list[int]] = {}
    told: list[str] = []

    def kill_something(line: str) -> None:
        told.append(line)
        trial = line.partition(":")[0]
        if "iteration 2," in line and trial not in killed:
            victims = processes(next(titles))
            killed[trial] = [victim.pid for victim in victims]
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)

    try:
        outcomes = run_sweep(prepared, kill_something, open_world=functools.partial(served_world, name))
    finally:
        for replica in replicas:
            ray.kill(replica)
    assert len(killed) == 3
    assert all(killed.values()), "there was something to kill each time"
    assert [outcome.status for outcome in outcomes.values()] == ["finished"] * 3, told
    assert len(read_rows(prepared.folder / FILE)) == 3
    for trial, outcome in outcomes.items():
        assert outcome.iterations == 4
        assert [row["iteration"] for row in read_rows(prepared.folder / trial / "progress.jsonl")] == [
            1,
            2,
            3,
            4,
        ]
        assert outcome.measured == judged_again(prepared, trial)


@contextmanager
def a_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process of its own, in this session's Ray."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.tune_configs.toy_sweep", address, str(folder)]
    with (folder.parent / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None, "the sweep ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sweep_whose_own_process_is_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    prepared = toy_sweep(
        tmp_path / "killed",
        {"space": LR, "max_concurrent": 1},
        overrides=("ppo.iterations=12", "watch.every=4"),
    )
    write_sweep(prepared)
    second = prepared.folder / prepared.specs[1].id / "progress.jsonl"
    with a_process(prepared.folder) as process:
        wait_until(lambda: len(read_rows(second)) >= 1, process)
        with pytest.raises(UserError, match=r"sweep .*killed: another process is working on it"):
            run_sweep(prepared, open_world=toy_world)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = (prepared.folder / FILE).read_bytes()
    assert [row["spec"]["id"] for row in read_rows(prepared.folder / FILE)] == [prepared.specs[0].id]
    told: list[str] = []
    outcomes = run_sweep(prepared, told.append, open_world=toy_world)
    assert (prepared.folder / FILE).read_bytes().startswith(finished)
    assert [outcomes[spec.id].status for spec in prepared.specs] == ["finished"] * 3
    assert not [line for line in told if line.startswith(prepared.specs[0].id)], "it was not run again"
    assert outcomes == read_outcomes(prepared.folder)
    assert run_sweep(prepared, told.append) == outcomes, "and with nothing missing nothing is started"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"searcher": "optuna", "trials": 4, "max_concurrent": 1},
        {"scheduler": "asha", "trials": 4, "max_concurrent": 1, "grace": 4, "reduction_factor": 2},
        {"scheduler": "pbt", "trials": 2, "perturbation_interval": 4},
    ],
    ids=["optuna", "asha", "pbt"],
)
def test_a_search_whose_own_process_is_killed_goes_on(tmp_path: Path, kind: dict[str, Any]) -> None:
    content = {"space": {"ppo.lr": {"loguniform": [1.0e-5, 1.0e-2]}}, **kind}
    overrides = ("ppo.iterations=12", "watch.every=4")
    prepared = toy_sweep(tmp_path / "killed", content, overrides=overrides)
    write_sweep(prepared)
    names = [f"toy-t{index}-s0" for index in range(prepared.sweep.config.trials)]
    second = prepared.folder / names[1] / "progress.jsonl"
    with a_process(prepared.folder) as process:
        wait_until(lambda: len(read_rows(second)) >= 5, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = (prepared.folder / FILE).read_bytes()
    told: list[str] = []
    outcomes = run_sweep(prepared, told.append, open_world=toy_world)
    assert (prepared.folder / FILE).read_bytes().startswith(before)
    assert sorted(outcomes) == names
    assert {outcome.status for outcome in outcomes.values()} <= {"finished", "stopped"}
    for name, outcome in outcomes.items():
        rows = read_rows(prepared.folder / name / "progress.jsonl")
        assert [row["iteration"] for row in rows] == list(range(1, outcome.iterations + 1))
    assert run_sweep(prepared, told.append) == outcomes, "and with nothing missing nothing is started"


def test_a_complete_search_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "connected", lambda *_: pytest.fail("asks for Ray"))
    space = {"ppo.lr": {"loguniform": [1.0e-5, 1.0e-2]}}
    prepared = toy_sweep(tmp_path / "search", {"space": space, "searcher": "optuna", "trials": 2})
    ledger = Ledger(prepared.folder)
    for name in ("t0", "t1"):
        ledger.add(finished(spec_of(name), [0.5, 0.6], [4.0, 5.0]))
    assert run_sweep(prepared) == ledger.outcomes


def test_halving_stops_trials_on_enough_prompts_and_keeps_them_in_the_table(tmp_path: Path) -> None:
    content = {
        "space": {"ppo.lr": {"loguniform": [1.0e-5, 1.0e-2]}},
        "scheduler": "asha",
        "trials": 4,
        "grace": 1,
        "reduction_factor": 2,
        "max_concurrent": 1,
    }
    prepared = toy_sweep(tmp_path / "halved", content, overrides=("ppo.iterations=4",))
    outcomes = run(prepared)
    statuses = [outcome.status for outcome in outcomes.values()]
    assert len(statuses) == 4
    assert set(statuses) == {"finished", "stopped"}
    assert statuses[0] == "finished", "one at a time, the first has nobody to be worse than"
    best = max(outcome.metric("utility") or 0.0 for outcome in outcomes.values())
    for outcome in outcomes.values():
        held_out = read_rows(prepared.folder / outcome.spec.id / "held_out.jsonl")
        assert all(len(row["quality"]) == 8 for row in held_out)
        assert (outcome.measured is not None) == (outcome.status == "finished")
        assert outcome.iterations == (4 if outcome.status == "finished" else held_out[-1]["iteration"])
    rows = table(prepared.sweep, prepared.specs, outcomes)
    assert {row.status for row in rows} == set(statuses)
    assert max(row.numbers["utility"] for row in rows) == pytest.approx(best)


def test_a_population_exchanges_weights_and_changes_what_it_searches(tmp_path: Path) -> None:
    content = {
        "space": {"ppo.lr": {"loguniform": [1.0e-5, 1.0e-2]}, "reward.c_nfe": {"uniform": [0.01, 0.2]}},
        "scheduler": "pbt",
        "trials": 2,
        "perturbation_interval": 2,
    }
    prepared = toy_sweep(tmp_path / "population", content, overrides=("ppo.iterations=6",))
    outcomes = run(prepared)
    assert [outcome.status for outcome in outcomes.values()] == ["finished"] * 2
    prices = {
        trial: {row["c_nfe"] for row in read_rows(prepared.folder / trial / "progress.jsonl")}
        for trial in outcomes
    }
    assert any(len(seen) > 1 for seen in prices.values()), (
        "one of the two took over from the other, and changed its price"
    )
    for outcome in outcomes.values():
        rows = read_rows(prepared.folder / outcome.spec.id / "progress.jsonl")
        assert [row["iteration"] for row in rows] == list(range(1, 7))
        assert outcome.spec.values["reward.c_nfe"] == pytest.approx(rows[-1]["c_nfe"]), "what it ended with"
        assert outcome.iterations == 6
        assert outcome.seconds > rows[-1]["seconds"] + rows[-2]["seconds"], "not since its last pause alone"


def test_fixed_schedules_are_measured_once_beside_the_policies(tmp_path: Path) -> None:
    content = {"space": {"ppo.lr": {"grid": [1.0e-3]}}, "fixed": [2, 6]}
    prepared = toy_sweep(tmp_path / "fixed", content)
    assert [spec.id for spec in prepared.specs] == ["fixed-ddim-2", "fixed-ddim-6", "toy-lr=0.001-s0"]
    outcomes = run(prepared)
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    base, judge = prepared.base, prepared.sweep.config.judge
    requests = judged_requests(base, judge)
    for steps in (2, 6):
        found = outcomes[f"fixed-ddim-{steps}"].measured
        assert found is not None
        assert set(found.nfe) == set(found.cost) == {float(steps)}
        engine = Engine(ToyBackbone(), reference_config(base.engine, steps))
        observer = Observer(base.observation, ObservationSizes(2, 3), engine.action_names)
        episodes = rollout(
            engine, ContinueDecider(engine.action_names), observer, requests, slots=3, scorer=None
        )
        images = engine.backbone.decode(torch.stack([episode.latents_CHW for episode in episodes]))
        assert found.quality == tuple(ToyScorer().score(images, [])["image_reward"].tolist())
    told: list[str] = []
    assert run_sweep(prepared, told.append, open_world=toy_world) == outcomes
    assert not told


def test_what_a_cluster_has_no_room_for_is_one_line(tmp_path: Path) -> None:
    asking = toy_sweep(tmp_path / "gpus", {"space": LR}, overrides=("resources.gpus_per_env_runner=1",))
    told: list[str] = []
    said = (
        r"resources.gpus_per_env_runner=1: each trial asks for 1 GPUs and 0.75 CPUs; 1 such nodes have 0 GPUs"
    )
    with pytest.raises(UserError, match=said):
        run_sweep(asking, told.append, open_world=toy_world)
    assert not asking.folder.exists()
    assert not told, "nobody adds nodes to a Ray of one's own, so nothing is waited for"


def test_a_trial_asks_for_its_process_and_its_env_runners(tmp_path: Path) -> None:
    sweep = toy_sweep(Path("nowhere"), {"space": LR}).sweep.config
    many = run_config([*TOY, "resources.num_env_runners=4"])
    assert trial_bundles(many, sweep) == [{"CPU": 0.75}] + [{"CPU": 0.5}] * 4
    wanted = trial_demands(many, sweep)
    assert lack(wanted, [Node.of({"CPU": 2.0}), Node.of({"CPU": 0.75})]) is None
    said = lack(wanted, [Node.of({"CPU": 2.5})])
    assert said is not None
    assert said.startswith("resources.num_env_runners=4: each env runner asks for 0 GPUs and 0.5 CPUs")
    with pytest.raises(UserError, match=r"sweep.cpus_per_trial=0: give more"):
        toy_sweep(tmp_path / "nothing", {"space": LR, "cpus_per_trial": 0})
