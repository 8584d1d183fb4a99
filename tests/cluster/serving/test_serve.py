"""`addiffusion serve` on Ray: real processes, the embedded world, many clients, a kill, a swap, the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import ray

from actors.errors import UserError
from cluster.serve_command import ServeOptions, serve_model
from cluster.serving import application
from cluster.serving.application import free_port
from cluster.serving.limits import MAX_BODY_BYTES
from tests.cluster.serving.painters import assert_is_error, events_of, png_of
from tests.cluster.serving.test_hostile import hostile_bodies
from tests.cluster.serving.world import PROMPTS, Alone, registered, shapes_policy

MODEL = "addiffusion-shapes@champion"
CLIENTS = 8
SLOTS = 4


def options(**changed: object) -> ServeOptions:
    usual: dict[str, object] = {
        "host": "127.0.0.1",
        "port": 8000,
        "replicas": 2,
        "slots": SLOTS,
        "max_queue": 100,
        "timeout_s": 120.0,
        "token_variable": None,
        "address": None,
        "poll_s": 0.5,
        "device": None,
    }
    return ServeOptions(**usual | changed)  # type: ignore[arg-type]


@dataclass
class Endpoint:
    """A served registry; `versions` says which policy each version is."""

    url: str
    folder: Path
    stop: threading.Event
    codes: list[int] = field(default_factory=list)
    versions: dict[str, Alone] = field(default_factory=dict)

    def promote(self, seed: int) -> str:
        policy = shapes_policy(self.folder / f"policy-{seed}", seed)
        alone = Alone(policy)
        version = registered(self.folder / "runs", policy)
        self.versions[version] = alone
        return version

    def ask(self, seed: int, **body: object) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/images/generations",
            json={"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, **body},
            timeout=180,
        )

    def assert_right(self, seed: int, image: dict[str, object]) -> str:
        """The image is what its version paints alone; gives the version."""
        version = str(image["model_version"])
        assert png_of(image) == self.versions[version].png(PROMPTS[seed % len(PROMPTS)], seed), (
            seed,
            version,
        )
        return version

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return float(
            next(line for line in lines if line.startswith(f"addiffusion_serving_{name} ")).split()[-1]
        )


@pytest.fixture(scope="module")
def endpoint(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("endpoint")
    (folder / "runs").mkdir()
    port = free_port()
    endpoint = Endpoint(f"http://127.0.0.1:{port}", folder, threading.Event())
    endpoint.promote(0)

    def run() -> None:
        code = serve_model(
            MODEL, options(port=port), runs_dir=folder / "runs", tracking_uri=None, stop=endpoint.stop
        )
        endpoint.codes.append(code)

    serving = threading.Thread(target=run, daemon=True)
    serving.start()
    wait_until(lambda: is_ready(endpoint) or not serving.is_alive(), 240)
    assert is_ready(endpoint)
    yield endpoint
    endpoint.stop.set()
    serving.join(120)
    assert not serving.is_alive()


def is_ready(endpoint: Endpoint) -> bool:
    try:
        return httpx.get(f"{endpoint.url}/healthz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def pids_of(*kinds: str) -> set[int]:
    """Of the processes that live and have one of these in their class's name."""
    return {
        actor["Pid"]
        for actor in ray._private.state.actors().values()
        if actor["State"] == "ALIVE" and any(kind in actor["ActorClassName"] for kind in kinds)
    }


def painter_pids() -> set[int]:
    return pids_of("painter")


@pytest.mark.timeout(600)
def test_clients_at_once_get_the_images_that_are_painted_alone(endpoint: Endpoint) -> None:
    def ask(seed: int) -> dict[str, object]:
        response = endpoint.ask(seed, stream=seed % 2 == 0)
        assert response.status_code == 200, response.text[:300]
        if seed % 2:
            return dict(response.json()["data"][0])
        events = events_of(response.text)
        decisions = [data["action"] for name, data in events if name.endswith("decision")]
        assert decisions == [decision["action"] for decision in events[-1][1]["decisions"]]
        return events[-1][1]

    with ThreadPoolExecutor(CLIENTS) as clients:
        images = list(clients.map(ask, range(40)))
    for seed, image in enumerate(images):
        assert endpoint.assert_right(seed, image) == "1"
    assert endpoint.metric('requests_total{outcome="ok"}') == 40
    assert endpoint.metric("image_retries_total") == 0


@pytest.mark.timeout(600)
def test_a_painter_that_is_killed_takes_no_request_with_it(endpoint: Endpoint) -> None:
    before = painter_pids()
    assert len(before) == 2
    with ThreadPoolExecutor(4 * SLOTS) as clients:  # more than one painter is ever given
        asked = [clients.submit(endpoint.ask, seed) for seed in range(100, 160)]
        wait_until(lambda: sum(one.done() for one in asked) >= 4, 120)
        os.kill(min(before), signal.SIGKILL)
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 60, {a.text[:200] for a in answers}
    for seed, answer in enumerate(answers, start=100):
        endpoint.assert_right(seed, answer.json()["data"][0])
    most = 2 * SLOTS + application._SPARE
    assert most < 4 * SLOTS
    assert 1 <= endpoint.metric("image_retries_total") <= most  # its own images, and nobody else's
    wait_until(lambda: len(painter_pids() - {min(before)}) == 2, 240)


@pytest.mark.timeout(600)
def test_the_champion_is_swapped_under_load(endpoint: Endpoint) -> None:
    ended, seen = threading.Event(), dict[int, dict[str, object]]()

    def ask(client: int) -> None:
        seed = 1000 * (client + 1)
        while not ended.is_set():
            response = endpoint.ask(seed)
            assert response.status_code == 200, response.text[:300]
            seen[seed] = response.json()["data"][0]
            seed += 1

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask, client) for client in range(4)]
        try:
            wait_until(lambda: len(seen) >= 4, 120)
            second = endpoint.promote(1)
            wait_until(
                lambda: [image["model_version"] for image in list(seen.values())].count(second) >= 8, 120
            )
        finally:
            ended.set()
        for one in asking:
            one.result()
    found = {endpoint.assert_right(seed, image) for seed, image in seen.items()}
    assert found == {"1", second}


@pytest.mark.timeout(600)
def test_who_leaves_frees_the_slots(endpoint: Endpoint) -> None:
    before = endpoint.metric('requests_total{outcome="left"}')
    body = {"prompt": PROMPTS[0], "n": 10, "stream": True}
    with httpx.stream("POST", f"{endpoint.url}/v1/images/generations", json=body, timeout=60) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    wait_until(lambda: endpoint.metric('requests_total{outcome="left"}') == before + 1, 60)
    wait_until(lambda: endpoint.metric("slots_in_use") == endpoint.metric("images_queued") == 0, 60)


def test_a_second_endpoint_on_this_ray_is_refused_and_the_first_goes_on(endpoint: Endpoint) -> None:
    with pytest.raises(UserError, match="running on this Ray already"):
        serve_model(MODEL, options(port=1), runs_dir=endpoint.folder / "runs", tracking_uri=None)
    assert is_ready(endpoint)


@pytest.mark.timeout(600)
def test_what_is_sent_in_excess_is_not_kept(endpoint: Endpoint) -> None:
    for _ in range(3):
        try:
            response = httpx.post(
                f"{endpoint.url}/v1/images/generations",
                content=b" " * (8 * 2**20),
                headers={"content-type": "application/json"},
                timeout=60,
            )
        except httpx.WriteError:
            continue  # it closed the connection before all was sent, as it may
        assert_is_error(response, 413)
    assert endpoint.ask(1).status_code == 200


@pytest.mark.timeout(600)
def test_memory_of_proxy_and_ingress_stays_flat_whatever_is_sent(endpoint: Endpoint) -> None:
    bodies = [*hostile_bodies()[::5], b" " * (2 * MAX_BODY_BYTES)]
    processes = [psutil.Process(pid) for pid in pids_of("ProxyActor", "ingress")]
    assert len(processes) == 2

    def send_all(client: httpx.Client) -> None:
        for body in bodies:
            response = client.post("/v1/images/generations", content=body)
            assert_is_error(response)

    with httpx.Client(
        base_url=endpoint.url, headers={"content-type": "application/json"}, timeout=60
    ) as client:
        send_all(client)
        before = [process.memory_info().rss for process in processes]
        for _ in range(3):
            send_all(client)
        grown = [process.memory_info().rss - rss for process, rss in zip(processes, before, strict=True)]
    assert max(grown) < 48 * 2**20


def test_where_there_is_no_room_it_says_so_and_serves_nothing(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "_check_is_alone", lambda: None)
    settings = application.ServingSettings(replicas=1000)
    with pytest.raises(UserError, match="--replicas=1000: each painter asks for"):
        application.check_room(settings, 0.0, lambda told: None)


@pytest.mark.timeout(600)
def test_at_the_end_what_was_asked_is_answered(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(endpoint.ask, seed, n=4) for seed in range(CLIENTS)]
        wait_until(lambda: endpoint.metric("slots_in_use") >= 1, 60)
        endpoint.stop.set()
        refused = None
        while refused is None or refused.status_code == 200:
            try:
                refused = endpoint.ask(99)
            except httpx.HTTPError:
                break  # it has ended already
        if refused is not None:
            assert_is_error(refused, 503)
        answers = [one.result() for one in asked]
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert sum(answer.status_code == 200 for answer in answers) >= 1
    for seed, answer in enumerate(answers):
        if answer.status_code == 200:
            assert len(answer.json()["data"]) == 4, seed
    wait_until(lambda: bool(endpoint.codes), 120)
    assert endpoint.codes == [0]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"host": "0.0.0.0"}, "--token-variable"),
        ({"host": "192.168.1.5", "token_variable": "UNSET_TOKEN"}, "UNSET_TOKEN"),
        ({"token_variable": "SHORT_TOKEN"}, "SHORT_TOKEN"),
        ({"replicas": 0}, "--replicas=0"),
        ({"slots": 0}, "--slots=0"),
        ({"max_queue": -1}, "--max-queue=-1"),
        ({"timeout_s": float("nan")}, "--timeout-s=nan"),
        ({"poll_s": 0.0}, "--poll-s=0"),
        ({"port": 70_000}, "--port=70000"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    changed: dict[str, object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "short-secret")
    with pytest.raises(UserError) as raised:
        serve_model(MODEL, options(**changed), runs_dir=tmp_path, tracking_uri=None)
    assert named in str(raised.value)
    assert "short-secret" not in str(raised.value)


def test_a_port_that_is_taken_and_a_model_that_is_not_there_are_one_line(tmp_path: Path) -> None:
    from cluster.serving.application import check_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen there"):
            check_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="there is no registry"):
        serve_model(MODEL, options(), runs_dir=tmp_path, tracking_uri=None)


def test_a_signal_asks_for_the_end_and_the_second_ends_at_once() -> None:
    from cluster.serve_command import _until_signal

    for number in (signal.SIGTERM, signal.SIGINT):
        stopping = threading.Event()
        before = signal.getsignal(number)
        with _until_signal(stopping) as signals:
            signals.ready = True
            os.kill(os.getpid(), number)
            assert stopping.wait(10)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_it_is_ready_ends_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    registered(tmp_path / "runs", shapes_policy(tmp_path / "policy"))
    served: list[object] = []

    def waits_for_room(*args: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("learner.connection.connected", lambda *args: contextlib.nullcontext())
    monkeypatch.setattr(application, "check_room", waits_for_room)
    monkeypatch.setattr(application, "served", lambda *args: served.append(args))
    code = serve_model(MODEL, options(port=free_port()), runs_dir=tmp_path / "runs", tracking_uri=None)
    assert code == 130
    assert not served
    assert "ready" not in capsys.readouterr().out.replace("before it was ready", "")


def test_the_token_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-token-of-some-length")
    assert options(token_variable="SOME_TOKEN").token() == "a-token-of-some-length"
    assert "SOME_TOKEN" not in os.environ
