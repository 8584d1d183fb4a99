"""Files that grow line by line, on disks that are full and after kills."""

from __future__ import annotations

import resource
from pathlib import Path

from learner.events import EventLog, read_events
from learner.json_lines import JsonLines, read_rows


def test_a_half_line_that_a_kill_left_is_gone_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": ')
    assert JsonLines(path).append({"n": 3}) is None
    assert read_rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def test_rows_end_where_a_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"iteration": 0}\n\xe5\x00\xff no text\n{"iteration": 2}\n')
    assert read_rows(path) == [{"iteration": 0}]


def test_what_a_disk_does_not_take_is_written_later_and_no_line_is_ever_half(tmp_path: Path) -> None:
    """The limit lets a part of a line through, as a disk that fills up does."""
    file = JsonLines(tmp_path / "rows.jsonl")
    assert file.append({"n": 1}) is None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, before[1]))
    try:
        error = file.append({"n": 2})
        assert isinstance(error, OSError)
        assert error.strerror == "File too large"
        assert isinstance(file.append({"n": 3}), OSError)
        assert (tmp_path / "rows.jsonl").read_text() == '{"n": 1}\n'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.append({"n": 4}) is None
    assert [row["n"] for row in read_rows(tmp_path / "rows.jsonl")] == [1, 2, 3, 4]


def test_a_device_without_space_is_an_error_that_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = JsonLines(path)
    path.unlink()
    path.symlink_to("/dev/full")
    error = file.append({"n": 1})
    assert isinstance(error, OSError)
    assert error.strerror == "No space left on device"


def test_events_of_a_resumed_run_follow_the_earlier_ones(tmp_path: Path) -> None:
    shown: list[str] = []
    for iteration, sentence in ((3, "first"), (7, "second")):
        log = EventLog(tmp_path, lambda row: shown.append(row["sentence"]))
        log.iteration = iteration
        log.record("disk", sentence, {"bytes": 1.0}, stops=iteration == 7)
    events = read_events(tmp_path)
    assert [(event.iteration, event.sentence, event.stops) for event in events] == [
        (3, "first", False),
        (7, "second", True),
    ]
    assert shown == ["first", "second"]
