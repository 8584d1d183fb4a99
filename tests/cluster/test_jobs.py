"""Following a job: what goes wrong with our own output, and what the server says, are told apart."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.errors import UserError
from cluster import jobs


class Client:
    """A job server whose one job writes a line and goes on."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "a line\n"

    def get_job_info(self, job: str) -> object:
        raise RuntimeError(self.error)

    def list_jobs(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "pipe"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_output_that_takes_nothing_ends_the_following(error: OSError) -> None:
    def write(text: str) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        jobs.follow(Client(), "job", write)  # type: ignore[arg-type]
    assert raised.value is error


def test_only_a_server_that_does_not_know_the_job_says_that_it_is_not_there() -> None:
    lost = Client("Request failed with status code 500: agent of job train-404-a is away.")
    with pytest.raises(RuntimeError, match="status code 500"):
        jobs.details(lost, "train-404-a")  # type: ignore[arg-type]
    unknown = Client("Request failed with status code 404: no such job.")
    with pytest.raises(UserError, match="job 'mine': not found"):
        jobs.details(unknown, "mine")  # type: ignore[arg-type]
