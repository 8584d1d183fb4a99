"""README's commands as a newcomer types them, one after the other in one folder, at a size of minutes.

Nothing is left out of a line: options that make it small are put behind what README says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import PROJECT, command_lines

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
#: What is put behind a command, by its first words; the longest match counts.
SMALLER = {
    "train --resume": ["ppo.iterations=3", *EVALUATION],
    "train --dry-run": [],
    "train": [*TRAINING, *EVALUATION],
    "evaluate": EVALUATION,
    "metrics": ["evaluation.metrics.names=[nfe,strict]"],
    "baselines run": EVALUATION,
    "front": EVALUATION,
    "tune sweep=pareto": [*SWEEP, "sweep.space={reward.c_nfe: {grid: [0.01, 0.04]}}"],
    "tune": [*SWEEP, "sweep.variants.no_quality=null"],
    "offline": ["iterations=2", "updates_per_iteration=5", "minibatch_size=32"],
    "registry promote": ["--seeds", "1", "--force", "--reason", "a first one"],
    "bench rollout": ["--episodes", "4", "--slots", "2", "--repeats", "1"],
    "generate": [],
    "gates": [],
    "doctor": [],
}
#: Commands that a test of their own runs: against a real head; and that do not end by themselves.
ELSEWHERE = ("submit",)
SERVERS = ("serve",)


def smaller(words: list[str]) -> list[str]:
    """A command with what makes it small."""
    line = " ".join(words)
    return [*words, *SMALLER[max((start for start in SMALLER if line.startswith(start)), key=len)]]


def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    lines = [words for words in command_lines(PROJECT / "README.md", "addiffusion") if "..." not in words]
    assert len(lines) > 15
    for words in lines:
        if words[0] in ELSEWHERE:
            continue
        if words[0] in SERVERS:
            serve(words, tmp_path)
            continue
        ended = say(smaller(words), tmp_path)
        assert ended.returncode == 0, f"{' '.join(words)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
        assert "Traceback" not in ended.stderr, words


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
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
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
        assert "ready: http://127.0.0.1:8000" in said
