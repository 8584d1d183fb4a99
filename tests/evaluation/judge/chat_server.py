"""A local server that speaks OpenAI's chat protocol, with the faults that real ones have."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Fault:
    """One answer that is not a chat completion. drip_s sends the body a byte at a time."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0.0
    hang_up: bool = False


@dataclass
class ChatServer:
    """What the server was asked, and how it answers: the `faults` in order (None is none), then `say`."""

    url: str
    say: Callable[[dict[str, Any]], str]
    faults: list[Fault | None] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


def brighter(request: dict[str, Any]) -> str:
    """A judge who likes light."""
    one, two = (brightness(request, number) for number in (0, 1))
    winner = "tie" if abs(one - two) < 1 else "1" if one > two else "2"
    return json.dumps({"reason": "lighter", "winner": winner})


def brightness(request: dict[str, Any], number: int) -> float:
    """The mean pixel of the request's first or second image."""
    parts = [part for part in request["messages"][1]["content"] if part["type"] == "image_url"]
    head, encoded = parts[number]["image_url"]["url"].split(",", 1)
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return float(np.asarray(image).mean())


@contextmanager
def chat_server(say: Callable[[dict[str, Any]], str] = brighter) -> Iterator[ChatServer]:
    """A server on a free port of this machine, for the time of the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(request)
                state.times.append(time.monotonic())
                state.authorizations.append(self.headers["Authorization"])
                fault = state.faults.pop(0) if state.faults else None
            if self.path != "/v1/chat/completions":
                fault = Fault(404, f"no {self.path}")
            if fault is None:
                message = {"role": "assistant", "content": state.say(request)}
                usage = {"prompt_tokens": 800, "completion_tokens": 20}
                body = {
                    "model": f"{request['model']}-0001",
                    "choices": [{"message": message}],
                    "usage": usage,
                }
                fault = Fault(body=json.dumps(body))
            self._answer(fault)

        def _answer(self, fault: Fault) -> None:
            if fault.hang_up:
                self.close_connection = True
                return
            body = fault.body.encode()
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                for piece in [body] if not fault.drip_s else [body[i : i + 1] for i in range(len(body))]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(fault.drip_s)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = ChatServer(f"http://127.0.0.1:{server.server_port}/v1", say)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
