"""The commands of README.md and docs/ as a newcomer types them, page by page, at a size of minutes.

Nothing is left out of a line: options that make it small are put behind what the page says. What cannot be
run here is named below, with the reason or the test that runs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import PAGES, PROJECT, command_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

TRAINING = [
    "ppo.iterations=2",
    "ppo.episodes_per_iteration=16",
    "ppo.minibatch_size=32",
    "prompts.limit=16",
    "resources.slots=8",
    "watch.prompts=4",
]
EVALUATION = [
    "evaluation.prompts_per_tier=1",
    "evaluation.seeds=1",
    "evaluation.baselines=[dpmpp-3,ddim-50]",
    "evaluation.resamples=200",
    "evaluation.workers=1",
    "evaluation.strips=1",
    "evaluation.traced=2",
    "evaluation.metrics.names=[nfe,strict]",
]
SWEEP = [
    *TRAINING,
    "sweep.seeds=[0]",
    "sweep.judge.prompts=4",
    "sweep.judge.fewest_prompts=2",
    "sweep.judge.seeds=1",
]
#: What is put behind a command, by its first words; the longest match counts. Others are run as they are.
SMALLER = {
    "train --resume": ["ppo.iterations=3", *EVALUATION],
    "train --dry-run": [],
    "train prompts=file": [*TRAINING, *EVALUATION, "evaluation.prompts_per_tier=2", "watch.every=0"],
    "train": [*TRAINING, *EVALUATION],
    "evaluate": EVALUATION,
    "metrics": ["evaluation.metrics.names=[nfe,strict]"],
    "baselines run": EVALUATION,
    "front": EVALUATION,
    "tune sweep=pareto": [*SWEEP, "sweep.space.reward.c_nfe.grid=[0.01,0.04]", "sweep.fixed=[3]"],
    "tune --resume": [],
    "tune --long": ["ppo.iterations=3"],
    "tune": SWEEP,
    "offline": ["iterations=2", "updates_per_iteration=5", "minibatch_size=32"],
    "registry promote": ["--seeds", "1", "--force", "--reason", "a first one"],
    "registry calibrate": ["--limit", "64"],
    "bench rollout": ["--episodes", "4", "--slots", "2", "--repeats", "1"],
    "bench update": ["--repeats", "1"],
}
#: By first words, why not here.
NOT_HERE = {
    "submit": "tests/cluster/test_submit.py and test_submit_training.py, on a real head",
    "jobs": "tests/cluster/test_submit.py",
    "rewards": "tests/cluster/test_rewards_command.py",
    "train rewards.service": "tests/learner/test_session.py",
    "train backbone=sd15": "needs published weights",
    "baselines run lcm-4": "needs published weights",
    "baselines run ddim-4": "needs published weights",
    "doctor backbone": "needs published weights",
    "bench rollout backbone": "needs published weights",
    "train prompts=file prompts.source=hf:": "needs the hub",
    "train actions=full engine.refine_region=learned": "needs a network that trains for minutes",
    "judge": "needs an endpoint: tests/cluster/test_judge_command.py",
    "layout": "needs a benchmark's prompts: tests/cluster/test_layout_command.py",
    "metrics images.parquet": "needs Inception's weights: tests/evaluation/metrics",
    "metrics IMAGES": "a form, not a command",
    "transfer RUN": "a form: tests/evaluation/test_transfer.py",
    "bench scaling": "minutes of two cores: tests/evaluation/test_scaling_benchmark.py",
    "bench serving": "tests/cluster/serving/test_benchmark.py",
    "serve --replicas 4 --address auto": "needs a cluster: tests/cluster/serving/test_serve.py",
    "train ppo=seed_v1": "iterations of 64 episodes with 100 denoiser calls; composed by tests/test_docs.py",
    "tune ablation=all": "tests/tune_configs/test_ablations.py trains every variant",
    "tune ablation=A2": "the same",
    "tune ablation=A4": "the same",
}
#: Exit codes other than 0 that are an answer: what the numbers of so small a run say is not the point.
ANSWERS = {"registry calibrate": (0, 1), "registry rollback": (0, 2), "tune --long": (0, 1)}
#: What a page takes for granted beside runs and prompts.
BEFORE = {
    "baselines": [["tune", "sweep=pareto", *SMALLER["tune sweep=pareto"]]],
    "serving": [["registry", "promote", "addiffusion-shapes", *SMALLER["registry promote"]]],
}
PAGES_RUN = [page for page in PAGES if page.stem not in ("results", "troubleshooting")]


def longest(words: list[str], table: dict[str, object]) -> str | None:
    line = " ".join(words)
    return max((start for start in table if line.startswith(start)), key=len, default=None)


def lines_of(page: Path) -> list[list[str]]:
    """Its commands, each once, but for what cannot be run here."""
    found = [[word for word in words if word != "..."] for words in command_lines(page, "addiffusion")]
    distinct = {" ".join(words): words for words in found}
    return [words for words in distinct.values() if longest(words, dict(NOT_HERE)) is None]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: runs, and files of prompts."""
    folder = tmp_path_factory.mktemp("newcomer")
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "star")]
    for name in ("mine.txt", "held_out.txt", "prompts.txt"):
        (folder / name).write_text("\n".join(texts) + "\n")
    for name in ("run", "run-2", "slower", "cheap"):
        ended = say(["train", f"name={name}", *TRAINING, *EVALUATION], folder)
        assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy for each page."""
    copied = tmp_path / "newcomer"
    shutil.copytree(prepared, copied)
    yield copied
    shutil.rmtree(copied)


def test_what_is_not_run_here_is_still_in_the_pages() -> None:
    every = [" ".join(words) for page in PAGES for words in command_lines(page, "addiffusion")]
    for start in NOT_HERE:
        assert any(line.startswith(start) for line in every), start


def test_every_command_of_the_readme_runs_from_nothing(tmp_path: Path) -> None:
    lines = lines_of(PROJECT / "README.md")
    assert len(lines) > 15
    run_lines(lines, tmp_path)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES_RUN if page.stem != "README" and lines_of(page)],
    ids=lambda page: page.stem,
)
def test_every_command_of_a_page_runs(page: Path, folder: Path) -> None:
    for words in BEFORE.get(page.stem, []):
        ended = say(words, folder)
        assert ended.returncode == 0, ended.stderr
    run_lines([[word.replace("RUN", "run") for word in words] for words in lines_of(page)], folder)


def run_lines(lines: list[list[str]], folder: Path) -> None:
    for words in lines:
        if words[0] == "serve":
            serve(words, folder)
            continue
        start = longest(words, dict(SMALLER))
        ended = say([*words, *(SMALLER[start] if start else [])], folder)
        answer = longest(words, dict(ANSWERS))
        told = f"{' '.join(words)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
        assert ended.returncode in (ANSWERS[answer] if answer else (0,)), told
        assert "Traceback" not in ended.stderr, told


def say(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def serve(words: list[str], folder: Path) -> None:
    """Until it is ready, then asked to end."""
    with (folder / "served.txt").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "cluster.cli", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "ADDIFFUSION_TOKEN": "a-token-of-some-length"},
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("ready: "):
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, said + (folder / "served.txt").read_text()
        assert "ready: http://" in said
