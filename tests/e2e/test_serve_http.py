"""HTTP through everything: proxy, controller and replicas as real processes, asked by real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from retinue import serve
from retinue.serve.api import RunTarget
from tests.e2e import serving
from tests.e2e.serve_apps import Api, Gate, Inner, Models, Outer, Plain, Raw, ThreadGate
from tests.e2e.serving import TIMEOUT_S, metric, open_files, pids, private_bytes, proxy_pids, read_json
from tests.serve.proxy.servers import Client

GIB = 1 << 30
HEADER_LIMIT = 8192


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One node, with every application of these tests on it."""
    folder = str(tmp_path_factory.mktemp("r"))
    with serving.running(
        folder,
        max_body_bytes=2 * GIB,
        max_header_bytes=HEADER_LIMIT,
        header_timeout_s=1.0,
        body_timeout_s=5.0,
    ) as client:
        serve.run_many(
            [
                RunTarget(Api.bind(), "api", "/api"),
                RunTarget(Raw.bind(), "raw", "/raw"),
                RunTarget(Plain.bind(), "plain", "/"),
                RunTarget(Plain.options(name="Nested").bind(), "nested", "/api/plain"),
                RunTarget(Outer.bind(Inner.bind()), "chain", "/chain"),
                RunTarget(Gate.bind(), "gate", "/gate"),
                RunTarget(ThreadGate.bind(), "threads", "/threads"),
                RunTarget(
                    Gate.options(name="One", max_ongoing_requests=1, max_queued_requests=1).bind(),
                    "one",
                    "/one",
                ),
                RunTarget(
                    Gate.options(
                        name="Other",
                        max_ongoing_requests=1,
                        max_queued_requests=1,
                        backpressure_config={"status_code": 429, "retry_after_s": 7},
                    ).bind(),
                    "other",
                    "/other",
                ),
                RunTarget(Models.bind(), "models", "/models"),
            ]
        )
        yield client


@pytest.fixture
def client(topology: httpx.Client) -> httpx.Client:
    return topology


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def place(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port or 0


@contextlib.asynccontextmanager
async def raw_client(client: httpx.Client) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*place(client), limit=1 << 24)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def ask(app: str, method: str, *args: Any) -> Any:
    """By a handle, beside the queue: also where the only slot is taken."""
    handle = serve.get_app_handle(app)
    return handle.broadcast(method, *args).results(timeout_s=TIMEOUT_S)[0]


# --- answers


def test_json_in_and_out(client: httpx.Client) -> None:
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    assert read_json(client.post("/echo", json=value)) == value
    answer = client.post("/echo", content=b"{not json")
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["detail"]


def test_bytes_text_and_starlette_responses(client: httpx.Client) -> None:
    body = bytes(range(256)) * 1000
    assert client.post("/raw_bytes/raw", content=body).content == body[::-1]
    assert client.get("/text?x=1").text == "GET x=1"
    answer = client.get("/response")
    assert (answer.status_code, answer.json(), answer.headers["x-made"]) == (202, {"made": True}, "by hand")
    assert client.get("/plain_text").headers["content-type"] == "text/plain; charset=utf-8"
    assert client.head("/text").headers["content-length"] == "5"


def test_fastapi_routes_of_a_class(client: httpx.Client) -> None:
    assert read_json(client.get("/api/hello/you")) == {"text": "hello you"}
    assert read_json(client.get("/api/sync/you")) == {"text": "you", "is_main": False}
    assert read_json(client.post("/api/items", json={"name": "x"})) == {"name": "x", "price": 1.0}
    assert client.post("/api/items", json={"price": "much"}).status_code == 422
    answer = client.get("/api/teapot")
    assert (answer.status_code, answer.headers["x-kind"]) == (418, "teapot")
    assert client.get("/api/nothing").status_code == 404
    assert "swagger" in client.get("/api/docs").text
    assert read_json(client.get("/api/openapi.json"))["servers"] == [{"url": "/api"}]


def test_raw_asgi(client: httpx.Client) -> None:
    answer = client.get("/raw/x")
    assert (answer.status_code, answer.text, answer.headers["x-raw"]) == (201, "raw /raw/x", "yes")


def test_generators_are_streamed(client: httpx.Client) -> None:
    answer = client.get("/items")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.text == 'one two {"three":3}\n'
    assert client.get("/thread_items").text == "".join(f"{n} " for n in range(100))


def test_chunks_arrive_as_they_are_made(client: httpx.Client) -> None:
    """The first one does while the handler still waits."""
    with client.stream("GET", "/api/sse") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "".join(answer.iter_text()) == "".join(f"data: {n}\n\n" for n in range(3))


def test_connections_are_kept(client: httpx.Client) -> None:
    async def check() -> None:
        async with raw_client(client) as raw:
            for number in range(50):
                raw.send(f"GET /text?{number} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                assert (await raw.answer())[2] == f"GET {number}=".encode()

    run(check())


# --- routes


def test_the_longest_prefix_has_the_request(client: httpx.Client) -> None:
    assert read_json(client.get("/api/plain/context"))["app"] == "nested"
    assert read_json(client.get("/context"))["app"] == "plain"
    assert client.get("/apiary/text").text.startswith("GET")
    assert read_json(client.get("/-/routes")) == {
        "/": "plain",
        "/api": "api",
        "/api/plain": "nested",
        "/raw": "raw",
        "/chain": "chain",
        "/gate": "gate",
        "/threads": "threads",
        "/one": "one",
        "/other": "other",
        "/models": "models",
    }
    for path in ("/-/healthz", "/livez", "/readyz"):
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (200, "success")


def test_a_route_prefix_that_is_taken_is_refused_without_the_controllers_traceback(
    client: httpx.Client,
) -> None:
    with pytest.raises(ValueError, match="route prefix") as caught:
        serve.run(Raw.bind(), name="second", route_prefix="/raw")
    assert (
        str(caught.value)
        == "application 'second' cannot have the route prefix '/raw': application 'raw' has it"
    )


def test_the_metrics_count_requests(client: httpx.Client) -> None:
    before = metric(client.get("/metrics").text, "serve_num_http_requests_total", application="plain")
    for _ in range(10):
        client.get("/text")
    after = metric(client.get("/metrics").text, "serve_num_http_requests_total", application="plain")
    assert after - before == 10


# --- limits


def raw_answer(client: httpx.Client, request: bytes) -> tuple[int, dict[str, str], bytes]:
    async def exchange() -> Any:
        async with raw_client(client) as raw:
            raw.send(request)
            return await raw.answer()

    answer: tuple[int, dict[str, str], bytes] = run(exchange())
    return answer


def test_what_is_too_large_or_too_slow_is_refused(client: httpx.Client) -> None:
    head = b"PUT /api/upload HTTP/1.1\r\nhost: x\r\n"
    status, headers, _ = raw_answer(client, head + b"content-length: %d\r\n\r\nabc" % (3 * GIB))
    assert (status, headers["connection"]) == (413, "close")
    assert raw_answer(client, head + b"x: " + b"y" * HEADER_LIMIT + b"\r\n\r\n")[0] == 431
    assert raw_answer(client, head)[0] == 408
    assert raw_answer(client, b"nonsense\r\n\r\n")[0] == 400


# --- ids, traces, deadlines


def test_ids_and_traces_go_on_to_nested_calls(client: httpx.Client) -> None:
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    answer = client.get("/chain", headers={"x-request-id": "mine", "traceparent": trace})
    told = read_json(answer)
    assert answer.headers["x-request-id"] == "mine"
    for side in ("outer", "inner"):
        assert told[side]["request_id"] == "mine"
        assert told[side]["trace"].split("-")[1] == "0123456789abcdef0123456789abcdef"
        assert told[side]["left_s"] is None
    answer = client.get("/chain")
    told = read_json(answer)
    assert len(answer.headers["x-request-id"]) == 32
    assert told["inner"]["request_id"] == told["outer"]["request_id"] == answer.headers["x-request-id"]
    assert told["inner"]["trace"] == told["outer"]["trace"] != trace


def test_the_time_that_is_left_goes_on_to_nested_calls(client: httpx.Client) -> None:
    told = read_json(client.get("/chain", headers={"x-request-timeout-seconds": "9"}))
    assert 5 < told["inner"]["left_s"] < told["outer"]["left_s"] < 9
    before = ask_inner("cancels")
    began = time.monotonic()
    answer = client.get("/chain/wait", headers={"x-request-timeout-seconds": "0.2"})
    assert answer.status_code == 504
    assert 0.2 <= time.monotonic() - began < 2
    serving.until(lambda: ask_inner("cancels") == before + 1)
    assert client.get("/chain", headers={"x-request-timeout-seconds": "no"}).status_code == 400


def ask_inner(method: str) -> Any:
    handle = serve.get_deployment_handle("Inner", "chain").options(method_name=method)
    return handle.remote().result(timeout_s=TIMEOUT_S)


# --- models and sessions


def test_a_model_is_loaded_by_one_replica_and_a_session_stays_at_one(client: httpx.Client) -> None:
    serve.get_app_handle("models")
    first = read_json(client.get("/models", headers={"serve_multiplexed_model_id": "m1"}))
    assert (first["model"], first["model_id"]) == ("model m1", "m1")

    def replicas(headers: dict[str, str]) -> set[str]:
        return {read_json(client.get("/models", headers=headers))["replica"] for _ in range(20)}

    assert replicas({"serve_multiplexed_model_id": "m1"}) == {first["replica"]}
    loads = serve.get_app_handle("models").broadcast("loaded").results(timeout_s=TIMEOUT_S)
    assert sorted(loads) == [[], ["m1"]]
    sessions = [replicas({"x-session-id": f"s{n}"}) for n in range(8)]
    assert all(len(found) == 1 for found in sessions), sessions
    assert read_json(client.get("/models", headers={"x-session-id": "s"}))["session_id"] == "s"


# --- full queues


@pytest.mark.parametrize(("app", "status", "retry_after"), [("one", 503, None), ("other", 429, "7")])
def test_a_full_queue_is_told_at_once(
    client: httpx.Client, app: str, status: int, retry_after: str | None
) -> None:
    async def check() -> None:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=TIMEOUT_S) as asker:
            running = asyncio.ensure_future(asker.get(f"/{app}"))
            await asyncio.to_thread(ask, app, "until_ongoing", 1)
            waiting = [asyncio.ensure_future(asker.get(f"/{app}")) for _ in range(4)]
            while len(refused := [w for w in waiting if w.done()]) < 3:
                await asyncio.wait([w for w in waiting if not w.done()], return_when="FIRST_COMPLETED")
            began = time.monotonic()
            answer = await asker.get(f"/{app}")
            assert time.monotonic() - began < 1
            for one in (answer, *(r.result() for r in refused)):
                assert one.status_code == status
                assert int(one.headers["retry-after"]) >= 1
                assert retry_after in (None, one.headers["retry-after"])
            await asyncio.to_thread(ask, app, "open")
            assert (await running).text == "open"
            (waited,) = [w for w in waiting if w not in refused]
            assert (await waited).text == "open"

    run(check())
    ask(app, "close")


# --- what goes wrong


def test_an_error_of_user_code_tells_nothing_of_it(client: httpx.Client) -> None:
    answer = client.get("/fail")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.text


def cut_stream(client: httpx.Client, path: str) -> bytes:
    """The body of a stream that does not end as it should."""
    host, port = place(client)
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        text = b""
        while chunk := raw.recv(65536):
            text += chunk
    assert b" 200 OK" in text.splitlines()[0]
    assert not text.endswith(b"0\r\n\r\n")
    assert b"secret" not in text
    return text


def test_a_stream_that_fails_never_ends_as_if_it_were_complete(client: httpx.Client) -> None:
    text = cut_stream(client, "/api/sse?fail=1")
    assert b"data: 2\n\n" in text
    assert b"event: error\n" in text
    for path in ("/api/sse?fail=1&kind=text/plain", "/broken_items"):
        text = cut_stream(client, path)
        assert b"event: error" not in text


# --- clients that leave


def test_a_client_that_leaves_is_signalled_at_once(client: httpx.Client) -> None:
    async def check() -> None:
        delays = []
        for number in range(10):
            async with raw_client(client) as raw:
                raw.send(b"GET /gate HTTP/1.1\r\nhost: x\r\n\r\n")
                await asyncio.to_thread(ask, "gate", "until_ongoing", 1)
                left = time.monotonic()
            await asyncio.to_thread(ask, "gate", "until_ongoing", 0)
            facts = await asyncio.to_thread(ask, "gate", "facts")
            assert len(facts["cancelled_at"]) == number + 1
            delays.append(facts["cancelled_at"][-1] - left)
        assert sorted(delays)[5] < 0.05, delays

    ask("gate", "close")
    run(check())


def test_threads_of_a_client_that_leaves_are_told_when_they_ask(client: httpx.Client) -> None:
    async def check() -> None:
        async with raw_client(client) as raw:
            raw.send(b"GET /threads HTTP/1.1\r\nhost: x\r\n\r\n")
            while (await asyncio.to_thread(ask, "threads", "facts"))["began"] == 0:
                pass
            left = time.monotonic()
        while not (facts := await asyncio.to_thread(ask, "threads", "facts"))["cancelled_at"]:
            pass
        assert facts["cancelled_at"][0] - left < 0.1

    run(check())


def test_a_thousand_clients_that_leave_in_mid_request(client: httpx.Client) -> None:
    """Twice: what the second thousand leave behind is a leak."""
    processes = [*proxy_pids(), *pids("Gate", "gate").values()]
    files = {}

    async def check() -> None:
        host, port = place(client)
        opened = [await asyncio.open_connection(host, port) for _ in range(1000)]
        for _, writer in opened:
            writer.write(b"GET /gate HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.to_thread(ask, "gate", "until_ongoing", 1000)
        left = time.monotonic()
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.to_thread(ask, "gate", "until_ongoing", 0)
        over = time.monotonic() - left
        assert over < 1.0
        facts = await asyncio.to_thread(ask, "gate", "facts")
        assert len(facts["cancelled_at"]) == 1000

    ask("gate", "close")
    for round_ in range(2):
        run(check())
        ask("gate", "close")
        files[round_] = [open_files(pid) for pid in processes]
    assert all(second <= first + 2 for first, second in zip(files[0], files[1], strict=True)), files
    assert serve.get_app_handle("gate").facts.remote().result(timeout_s=TIMEOUT_S)["ongoing"] == 0


# --- websockets


def test_websockets_of_fastapi(client: httpx.Client) -> None:
    url = f"ws://{client.base_url.host}:{client.base_url.port}/api/ws"

    async def check() -> None:
        async with connect(url, subprotocols=["chat"], proxy=None, max_size=None) as ws:  # type: ignore[list-item]
            assert ws.subprotocol == "chat"
            await ws.send("hello")
            assert await ws.recv() == "HELLO"
            big = bytes(range(256)) * 8000
            await ws.send(big)
            assert await ws.recv() == big[::-1]
            await ws.send("close")
            with pytest.raises(ConnectionClosed) as caught:
                await ws.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "asked for")
        async with connect(url, proxy=None) as ws:
            await ws.send("fail")
            with pytest.raises(ConnectionClosed) as caught:
                await ws.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1011
            assert "secret" not in caught.value.rcvd.reason
        with pytest.raises(InvalidStatus, match="403"):
            await connect(url + "/closed", proxy=None)
        async with connect(url, proxy=None) as ws:
            await ws.send("hello")
            await ws.recv()
            await ws.close(1000)

    run(check())
    serving.until(lambda: "left 1000" in ask("api", "sockets_over"))


def test_websockets_of_raw_asgi(client: httpx.Client) -> None:
    async def check() -> None:
        async with connect(f"ws://{client.base_url.host}:{client.base_url.port}/raw/x", proxy=None) as ws:
            for word in ("one", "two"):
                await ws.send(word)
                assert await ws.recv() == f"raw {word}"

    run(check())


# --- large bodies


class Peak:
    """The most private memory of some processes while the block ran, over what it was before."""

    def __init__(self, processes: list[int]) -> None:
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before: list[int] = []
        self.most: list[int] = []

    def _measure(self) -> list[int]:
        return [private_bytes(pid) for pid in self._processes]

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.most = [max(pair) for pair in zip(self.most, self._measure(), strict=True)]

    def __enter__(self) -> Self:
        self.before = self.most = self._measure()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown_mib(self) -> list[float]:
        return [(most - before) / (1 << 20) for before, most in zip(self.before, self.most, strict=True)]


def read_head(file: Any) -> dict[str, str]:
    assert b" 200 " in file.readline()
    headers = {}
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return headers


@pytest.fixture
def peak() -> Peak:
    return Peak([*proxy_pids(), *pids("Api", "api").values()])


def test_an_upload_of_a_gigabyte_is_held_nowhere(client: httpx.Client, peak: Peak) -> None:
    piece = b"x" * (1 << 20)
    with socket.create_connection(place(client), timeout=TIMEOUT_S) as raw, raw.makefile("rb") as file, peak:
        raw.sendall(f"PUT /api/upload HTTP/1.1\r\nhost: x\r\ncontent-length: {GIB}\r\n\r\n".encode())
        for _ in range(GIB // len(piece)):
            raw.sendall(piece)
        told = json.loads(file.read(int(read_head(file)["content-length"])))
    assert (told["size"], told["count"]) == (GIB, GIB)
    assert max(peak.grown_mib) < 64, peak.grown_mib


def test_a_download_of_a_gigabyte_is_held_nowhere(client: httpx.Client, peak: Peak) -> None:
    with socket.create_connection(place(client), timeout=TIMEOUT_S) as raw, raw.makefile("rb") as file, peak:
        raw.sendall(f"GET /api/download?size={GIB} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert int(read_head(file)["content-length"]) == GIB
        left, buffer = GIB, bytearray(1 << 20)
        while left:
            read = file.readinto(memoryview(buffer)[: min(left, len(buffer))])
            assert read
            left -= read
    assert max(peak.grown_mib) < 64, peak.grown_mib


def test_files_of_a_form(client: httpx.Client) -> None:
    files = {"first": ("a.bin", b"a" * 3_000_000), "second": ("b.txt", b"b" * 10)}
    assert read_json(client.post("/api/files", files=files)) == {"a.bin": 3_000_000, "b.txt": 10}


def test_many_clients_at_once_get_their_own_answers(client: httpx.Client) -> None:
    def call(number: int) -> bool:
        with httpx.Client(base_url=client.base_url, timeout=TIMEOUT_S) as mine:
            return all(
                read_json(mine.post("/echo", json={"n": number * 1000 + n}))["n"] == number * 1000 + n
                for n in range(20)
            )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(32)))


def test_nothing_is_ongoing_at_the_end(client: httpx.Client) -> None:
    def ongoing() -> float:
        return metric(client.get("/metrics").text, "serve_num_ongoing_http_requests")

    serving.until(lambda: ongoing() <= 1)  # the one that asks
