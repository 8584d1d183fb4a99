"""`addiffusion submit` and `jobs` against a real head that wants a token; each command is its own process."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.head import Head, running_head

pytestmark = pytest.mark.timeout(900)

SECRET = "open-sesame-7431"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """Stands in for the cluster's Python: prints what it was given and where it stands, and exits 3."""
    path = tmp_path / "bin" / "interpreter"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        'echo "arguments: $*"\n'
        'echo "secret has ${#SECRET} letters"\n'
        "ls cluster/cli.py prompts.txt .netrc runs 2>&1\n"
        "exit 3\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder, with something of everything that must not travel."""
    folder = tmp_path / "mine"
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "big.txt").write_text("old")
    (folder / ".netrc").write_text("password")
    (folder / "prompts.txt").write_text("a dog\n")
    return folder


def test_a_job_has_its_files_and_its_environment_and_gives_its_exit_code(
    head: Head, mine: Path, interpreter: Path
) -> None:
    options = ["--address", head.address, "--python", str(interpreter), "--env", f"SECRET={SECRET}"]
    code, out, err = head.say("submit", *options, "--", "doctor", "solver=ddim", cwd=mine)
    assert code == 3, err
    assert "arguments: -m cluster.cli doctor solver=ddim\n" in out
    assert f"secret has {len(SECRET)} letters" in out
    assert "\ncluster/cli.py\n" in out
    assert "\nprompts.txt\n" in out
    assert "'.netrc'" in out  # ls: cannot access
    assert "'runs'" in out
    assert "failed with exit code 3" in err
    (job,) = [line.removeprefix("job: ") for line in err.splitlines() if line.startswith("job: ")]
    at = ("--address", head.address)
    follow = head.say("jobs", "logs", job, "--follow", *at, cwd=mine)
    listed = head.say("jobs", "list", "--json", *at, cwd=mine)
    assert (follow[0], listed[0]) == (3, 0)
    assert follow[1] == out
    (row,) = [row for row in json.loads(listed[1]) if row["job"] == job]
    assert (row["status"], row["exit_code"], row["command"]) == ("failed", 3, "doctor solver=ddim")
    for _, said, complained in ((code, out, err), follow, listed):
        assert SECRET not in said + complained


def test_without_the_token_it_says_what_is_missing(head: Head, mine: Path) -> None:
    code, out, err = head.say("jobs", "list", "--address", head.address, cwd=mine, without="RAY_AUTH_TOKEN")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --address={head.address}: wants a token")
    assert err.count("\n") == 1


def test_a_failing_training_is_tried_again_and_goes_on_with_its_run(
    head: Head, mine: Path, tmp_path: Path
) -> None:
    """The first try leaves what a training leaves, and dies; the second is asked to resume exactly that."""
    storage = tmp_path / "storage"
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(
        "#!/bin/sh\n"
        'echo "arguments: $*"\n'
        f"test -d {storage}/runs/mine && exit 0\n"
        f"mkdir -p {storage}/runs/mine && touch {storage}/runs/mine/config.yaml && exit 1\n"
    )
    interpreter.chmod(0o755)
    options = ["--address", head.address, "--python", str(interpreter), "--storage", str(storage)]
    code, out, err = head.say("submit", *options, "--retries", "2", "--", "train", "name=mine", cwd=mine)
    assert code == 0, err
    first, second = [line for line in out.splitlines() if line.startswith("arguments: ")]
    expected = f"train name=mine runs_dir={storage}/runs resources.address=auto"
    assert first == f"arguments: -m cluster.cli {expected}"
    assert second == f"arguments: -m cluster.cli train --resume {storage}/runs/mine"


def test_ctrl_c_leaves_the_job_alone_and_stop_ends_it(head: Head, mine: Path, tmp_path: Path) -> None:
    interpreter = tmp_path / "interpreter"
    interpreter.write_text("#!/bin/sh\necho begun\nexec sleep 600\n")
    interpreter.chmod(0o755)
    at = ("--address", head.address)
    code, job, err = head.say(
        "submit", *at, "--python", str(interpreter), "--no-wait", "--", "doctor", cwd=mine
    )
    assert (code, job.count("\n")) == (0, 1), err
    job = job.strip()
    with head.start("jobs", "logs", "--follow", job, *at, cwd=mine) as process:
        assert process.stdout is not None
        assert any("begun" in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert f"addiffusion jobs logs --follow {job} --address {head.address}" in err
    assert f"addiffusion jobs stop {job} --address {head.address}" in err
    assert "status running" in head.say("jobs", "status", job, *at, cwd=mine)[1]
    assert head.say("jobs", "stop", job, *at, cwd=mine) == (0, f"job {job} stopped\n", "")
    code, out, err = head.say("jobs", "stop", "nobody", *at, cwd=mine)
    assert (code, out) == (2, "")
    assert err.startswith("error: job 'nobody': not found; known: ")
    assert job in err
