"""Following a job: what goes wrong with our own output, and what the server says, are told apart."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray.exceptions

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


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """HOST:PORT where this is answered, once, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def test_a_host_and_port_where_http_is_spoken_are_the_job_servers() -> None:
    with listener(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") as address:
        assert jobs._reach(address) == f"http://{address}"
    with listener(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00") as address:  # as gRPC begins: RAY_ADDRESS
        assert jobs._reach(address) == address
    assert jobs._reach("auto") == "auto"


@pytest.mark.parametrize(
    "error", [ray.exceptions.RpcError("Timed out while waiting for GCS to become available."), OSError("no")]
)
def test_a_cluster_that_does_not_answer_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(address: str) -> None:
        raise error

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", nobody)
    with pytest.raises(UserError, match=r"^--address=auto: cannot connect \((Timed out|no)"):
        jobs.connect("auto")
