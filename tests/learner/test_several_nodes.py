"""A run across the nodes of a Ray cluster: who lands where, and what a lost node costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.trajectory_store import episode_lengths, read
from tests.learner.several_nodes import EPISODES

pytestmark = [pytest.mark.slow, pytest.mark.multinode, pytest.mark.timeout(900)]
SHARE = EPISODES // 2
"""Episodes of one of two env runners in an iteration."""


def play(scenario: str, folder: Path) -> list[dict[str, Any]]:
    """What a scenario said, in its own process: this one may have a Ray session already."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.learner.several_nodes", scenario, str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def nodes_of(facts: list[dict[str, Any]], role: str) -> set[str]:
    return {fact["node"] for fact in facts if fact.get("role") == role}


def test_a_lost_node_costs_the_trajectories_in_flight_and_no_more(tmp_path: Path) -> None:
    facts = play("losing", tmp_path)
    (outcome,) = [fact for fact in facts if "episodes" in fact]
    episodes, (denoiser_lost, denoiser_added, rewards_lost) = outcome["episodes"], outcome["lost_at"]
    placed = facts[: next(number for number, fact in enumerate(facts) if "said" in fact)]
    assert nodes_of(placed, "denoiser") == {"denoiser-1", "denoiser-2"}
    assert nodes_of(placed, "rewards") == {"rewards-1"}
    assert episodes[:denoiser_lost] == [EPISODES] * denoiser_lost
    assert set(episodes) == {EPISODES, SHARE}, "the other env runner's share always comes back"
    assert episodes[denoiser_lost:denoiser_added].count(SHARE) >= 3, "training goes on with what is left"
    assert set(episodes[rewards_lost:]) == {EPISODES}, "scores under way were asked for again"
    said = [fact["said"] for fact in facts if fact.get("kind") == "lost_episodes"]
    assert said == [
        f"{SHARE} of {EPISODES} episodes came back; the others are lost, and what made them is started again",
        "all episodes come back again",
    ]
    after = facts[facts.index({"said": said[1], "kind": "lost_episodes"}) :]
    assert nodes_of(after, "denoiser") == {"denoiser-1", "denoiser-3", "gone"}
    assert nodes_of(after, "rewards") == {"rewards-2", "gone"}
    written = len(episode_lengths(read(tmp_path / "toy" / "trajectories")))
    assert sum(episodes) <= written <= sum(episodes) + SHARE, "one share at most was written and then lost"


def test_reward_replicas_and_denoisers_share_a_gpu_when_asked_to_and_never_else(tmp_path: Path) -> None:
    cases: dict[str, list[dict[str, Any]]] = {}
    for fact in play("apart", tmp_path):
        if "case" in fact:
            name = fact["case"]
        cases.setdefault(name, []).append(fact)
    assert nodes_of(cases["own nodes"], "denoiser") == {"denoisers"}
    assert nodes_of(cases["own nodes"], "rewards") == {"rewards"}
    assert gpus_of(cases["asked to share"], "denoiser") == gpus_of(cases["asked to share"], "rewards")
    assert not gpus_of(cases["whole"], "denoiser") & gpus_of(cases["whole"], "rewards")
    for case, begins in {
        "not asked": "resources.gpus_per_reward_replica=0.5: beside resources.gpus_per_env_runner=0.5",
        "too many": "resources.num_env_runners=3: each env runner asks for 1 GPUs and 1 CPUs on a node that",
        "no such node": "resources.denoiser_resource='elsewhere': none of the cluster's 4 nodes offers it",
    }.items():
        (error,) = [fact["error"] for fact in cases[case] if "error" in fact]
        assert error.startswith(begins)
        assert not nodes_of(cases[case], "denoiser"), "found before anything started"


def gpus_of(facts: list[dict[str, Any]], role: str) -> set[tuple[str, int]]:
    """Node and number of every GPU that processes of this role got."""
    found = {(fact["node"], gpu) for fact in facts if fact.get("role") == role for gpu in fact["gpus"]}
    assert found
    return found
