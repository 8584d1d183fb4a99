"""The ingress on a real port, without Ray."""

from __future__ import annotations

import threading
import time

import uvicorn

from cluster.serving.front import Front
from cluster.serving.generation import Limits
from cluster.serving.limits import AccessRules
from cluster.serving.painter import Painter


class Site:
    """The front with a real painter behind it, in threads of this process."""

    def __init__(self, painter: Painter, rules: AccessRules) -> None:
        config = uvicorn.Config(Front(painter, Limits(), rules).app(), port=0, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
