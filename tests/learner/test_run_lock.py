"""A run is trained by one process at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.errors import UserError
from learner.run_lock import FILE, alone

HOLDER = """
import sys, time
from pathlib import Path
from learner.run_lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_however_it_ends(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    command = [sys.executable, "-c", HOLDER, str(run_dir)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"mine: another process is working on it"), alone(run_dir):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (run_dir / FILE).exists(), "what it left behind means nothing"
    with alone(run_dir):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"runs_dir=.*cannot write there"), alone(tmp_path / "file" / "mine"):
        pass
