"""gRPC from a real client through a proxy to replicas of a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import retinue
from retinue import serve
from retinue.serve.exceptions import gRPCStatusError
from retinue.serve.grpc_util import RetinueServegRPCContext, gRPCInputStream
from retinue.serve.messages import CONTROLLER_NAME
from retinue.serve.proxy import grpc_own
from tests.serve.protos import zoo_pb2, zoo_pb2_grpc

WAIT_S = 30.0
SERVICERS = [
    "tests.serve.protos.zoo_pb2_grpc.add_ZooServicer_to_server",
    "tests.serve.protos.zoo_pb2_grpc:add_SecondServicer_to_server",
]
TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
ONE = (("application", "one"),)


@serve.deployment(max_ongoing_requests=100)
class Zoo:
    """Answers as the text of the request says."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    async def Say(self, request: Any, grpc_context: RetinueServegRPCContext) -> Any:
        match request.text:
            case "context":
                return self._context(grpc_context)
            case "trailers":
                grpc_context.set_trailing_metadata([("kind", "zebra"), ("raw-bin", b"\0\xff")])
            case "compressed":
                grpc_context.set_compression(grpc.Compression.Gzip)
            case "coded":
                grpc_context.set_code(grpc.StatusCode.ALREADY_EXISTS)
                grpc_context.set_details("there is one")
            case "coded failure":
                grpc_context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
                grpc_context.set_trailing_metadata([("kind", "zebra")])
                raise ValueError("not today")
            case "status error":
                raise gRPCStatusError(ValueError("x"), grpc.StatusCode.OUT_OF_RANGE, "too far")
            case "failure":
                raise ValueError("secret of the implementation")
            case "wrong type":
                return 5
            case "hold":
                await self._hold("hold")
            case "die":
                os._exit(1)
        return zoo_pb2.Word(text=f"said {request.text}", data=request.data)

    @staticmethod
    def _context(grpc_context: RetinueServegRPCContext) -> Any:
        request = serve.context.get_request_context()
        known = {
            "request_id": grpc_context.request_id(),
            "own_id": request.request_id,
            "application": grpc_context.application(),
            "app_name": request.app_name,
            "model": request.multiplexed_model_id,
            "session": request.session_id,
            "trace": request.trace,
            "traceparent": grpc_context.traceparent(),
            "peer": grpc_context.peer(),
            "metadata": [k for k, _ in grpc_context.invocation_metadata()],
            "left_s": request.deadline - time.monotonic() if request.deadline else None,
        }
        return zoo_pb2.Word(text=json.dumps(known))

    async def _hold(self, name: str) -> None:
        (self.folder / f"{name} begun").touch()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            (self.folder / f"{name} cancelled").touch()
            raise

    def Count(self, request: Any, grpc_context: RetinueServegRPCContext) -> Iterator[Any]:
        for value in range(request.value):
            if value == 70:
                raise ValueError("above 70")
            yield zoo_pb2.Number(value=value)
        grpc_context.set_trailing_metadata([("counted", str(request.value))])

    async def Sum(self, requests: gRPCInputStream[Any]) -> Any:
        total = 0
        async for request in requests:
            total += request.value
            if request.value == -1:
                break
        return zoo_pb2.Number(value=total)

    async def Chat(self, requests: gRPCInputStream[Any]) -> AsyncIterator[Any]:
        yield zoo_pb2.Word(text="hello")
        async for request in requests:
            if request.text == "hold":
                await self._hold("chat")
            if request.text == "die":
                os._exit(1)
            if request.text == "fail":
                raise ValueError("failed in chat")
            yield zoo_pb2.Word(text=request.text.upper())


@serve.deployment
class Other:
    def Say(self, request: Any) -> Any:
        return zoo_pb2.Word(text="other")

    def Again(self, request: Any) -> Any:
        return zoo_pb2.Word(text=request.text * 2)


@serve.deployment
def function(request: Any) -> Any:
    return zoo_pb2.Word(text=f"function {request.text}")


@serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
class Narrow:
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    async def Say(self, request: Any) -> Any:
        (self.folder / request.text).touch()
        while not (self.folder / "open").exists():  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(0.01)
        return request


def targets(protocol: str) -> list[str]:
    controller = retinue.get_actor(CONTROLLER_NAME, namespace="serve")
    groups = json.loads(retinue.get(controller.details.remote()))["target_groups"]
    return [f"{t['ip']}:{t['port']}" for g in groups if g["protocol"] == protocol for t in g["targets"]]


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)
    return found


def start() -> None:
    serve.start(
        http_options={"port": 0},
        grpc_options={"port": 0, "grpc_servicer_functions": SERVICERS},
        proxy_location="HeadOnly",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    retinue.init(num_cpus=8)
    try:
        start()
        serve.run(Zoo.bind(str(folder)), name="one", route_prefix="/one")
        serve.run(Other.bind(), name="two", route_prefix="/two")
        serve.run(function.bind(), name="three", route_prefix="/three")
        found = wait_for(lambda: targets("gRPC"))[0]
        with grpc.insecure_channel(found) as channel:
            wait_for(lambda: applications(channel) == {"one", "two", "three"})
        yield found
    finally:
        serve.shutdown()
        retinue.shutdown()


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def zoo(channel: grpc.Channel) -> Any:
    return zoo_pb2_grpc.ZooStub(channel)


def applications(channel: grpc.Channel, service: str = grpc_own.SERVICE) -> set[str]:
    kinds = grpc_own.messages()
    ask = channel.unary_unary(
        f"/{service}/ListApplications", kinds.list_request.SerializeToString, kinds.list_response.FromString
    )
    try:
        return set(ask(kinds.list_request(), timeout=WAIT_S).application_names)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return set()


def word(text: str, data: bytes = b"") -> Any:
    return zoo_pb2.Word(text=text, data=data)


def numbers(count: int) -> Iterator[Any]:
    return (zoo_pb2.Number(value=value) for value in range(count))


class TestKinds:
    def test_one_request_and_one_answer(self, zoo: Any) -> None:
        assert zoo.Say(word("hello", b"\0\xff"), metadata=ONE) == word("said hello", b"\0\xff")

    def test_messages_far_above_the_usual_limit(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            data = bytes(range(256)) * 100_000
            assert zoo_pb2_grpc.ZooStub(channel).Say(word("big", data), metadata=ONE).data == data

    def test_a_stream_of_answers(self, zoo: Any) -> None:
        call = zoo.Count(zoo_pb2.Number(value=50), metadata=ONE)
        assert [number.value for number in call] == list(range(50))
        assert ("counted", "50") in call.trailing_metadata()

    def test_an_empty_stream_of_answers(self, zoo: Any) -> None:
        assert list(zoo.Count(zoo_pb2.Number(value=0), metadata=ONE)) == []

    def test_a_stream_of_requests(self, zoo: Any) -> None:
        assert zoo.Sum(numbers(1000), metadata=ONE).value == 499_500
        assert zoo.Sum(iter(()), metadata=ONE).value == 0

    def test_an_answer_before_the_requests_end(self, zoo: Any) -> None:
        is_over = threading.Event()

        def requests() -> Iterator[Any]:
            yield zoo_pb2.Number(value=5)
            yield zoo_pb2.Number(value=-1)
            is_over.wait(WAIT_S)

        try:
            assert zoo.Sum(requests(), metadata=ONE).value == 4
        finally:
            is_over.set()

    def test_streams_both_ways_in_turns(self, address: str) -> None:
        async def check() -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                call = zoo_pb2_grpc.ZooStub(channel).Chat(metadata=ONE)
                assert (await call.read()).text == "hello"
                for text in ("a", "b", "c"):
                    await call.write(word(text))
                    assert (await call.read()).text == text.upper()
                await call.done_writing()
                assert await call.read() is grpc.aio.EOF
                assert await call.code() is grpc.StatusCode.OK

        run(check())

    def test_many_at_once_of_an_aio_client(self, address: str) -> None:
        async def check() -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                stub = zoo_pb2_grpc.ZooStub(channel)
                answers = await asyncio.gather(*(stub.Say(word(str(n)), metadata=ONE) for n in range(200)))
                assert [answer.text for answer in answers] == [f"said {n}" for n in range(200)]

        run(check())


def run(coroutine: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(WAIT_S):
            await coroutine

    asyncio.run(limited())


class TestApplications:
    def test_the_metadata_chooses(self, channel: grpc.Channel) -> None:
        stub = zoo_pb2_grpc.ZooStub(channel)
        assert stub.Say(word("x"), metadata=(("application", "two"),)).text == "other"
        assert stub.Say(word("x"), metadata=(("application", "three"),)).text == "function x"
        second = zoo_pb2_grpc.SecondStub(channel)
        assert second.Again(word("x"), metadata=(("application", "two"),)).text == "xx"

    @pytest.mark.parametrize("metadata", [(), (("application", "four"),)])
    def test_none_or_an_unknown_one(self, zoo: Any, metadata: Any) -> None:
        error = failure(lambda: zoo.Say(word("x"), metadata=metadata))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "one, three, two" in error.details()

    def test_our_own_service(self, channel: grpc.Channel) -> None:
        assert applications(channel) == {"one", "two", "three"}
        assert applications(channel, grpc_own.RAY_SERVICE) == {"one", "two", "three"}
        kinds = grpc_own.messages()
        healthz = channel.unary_unary(
            f"/{grpc_own.SERVICE}/Healthz",
            kinds.healthz_request.SerializeToString,
            kinds.healthz_response.FromString,
        )
        assert healthz(kinds.healthz_request()).message == "success"

    def test_health_of_each_service(self, channel: grpc.Channel) -> None:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "retinue.tests.zoo.Zoo", "retinue.tests.zoo.Second"):
            answer = check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def test_reflection_shows_the_services(self, channel: grpc.Channel) -> None:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"retinue.tests.zoo.Zoo", "retinue.tests.zoo.Second", grpc_own.SERVICE} <= set(
            database.get_services()
        )
        file = database.FindFileContainingSymbol("retinue.tests.zoo.Zoo")
        assert [service.name for service in file.service] == ["Zoo", "Second"]


def failure(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


class TestMetadata:
    def test_what_the_client_sends_reaches_the_request(self, zoo: Any) -> None:
        metadata = (
            *ONE,
            ("request_id", "mine"),
            ("multiplexed_model_id", "m1"),
            ("session_id", "s1"),
            ("traceparent", TRACE),
            ("x-request-timeout-seconds", "20"),
        )
        answer, call = zoo.Say.with_call(word("context"), metadata=metadata)
        known = json.loads(answer.text)
        assert (known["request_id"], known["own_id"], known["application"]) == ("mine", "mine", "one")
        assert (known["app_name"], known["model"], known["session"]) == ("one", "m1", "s1")
        assert (known["trace"], known["traceparent"]) == (TRACE, TRACE)
        assert known["peer"].startswith("ipv4:127.0.0.1:")
        assert set(dict(metadata)) <= set(known["metadata"])
        assert 10 < known["left_s"] <= 20
        trailers = dict(call.trailing_metadata())
        assert (trailers["request_id"], trailers["x-request-id"]) == ("mine", "mine")

    def test_what_it_does_not_send_is_made(self, zoo: Any) -> None:
        answer, call = zoo.Say.with_call(word("context"), metadata=ONE)
        known = json.loads(answer.text)
        assert len(known["own_id"]) == 32
        assert known["request_id"] == known["own_id"] == dict(call.trailing_metadata())["request_id"]
        assert len(known["trace"]) == len(TRACE)
        assert known["left_s"] is None

    def test_the_names_of_the_http_headers(self, zoo: Any) -> None:
        metadata = (
            *ONE,
            ("x-request-id", "mine"),
            ("serve_multiplexed_model_id", "m"),
            ("x-session-id", "s"),
        )
        known = json.loads(zoo.Say(word("context"), metadata=metadata).text)
        assert (known["own_id"], known["model"], known["session"]) == ("mine", "m", "s")

    def test_a_timeout_that_is_none(self, zoo: Any) -> None:
        metadata = (*ONE, ("x-request-timeout-seconds", "soon"))
        error = failure(lambda: zoo.Say(word("x"), metadata=metadata))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "x-request-timeout-seconds" in error.details()

    def test_trailers_and_compression_of_user_code(self, zoo: Any) -> None:
        _, call = zoo.Say.with_call(word("trailers"), metadata=ONE)
        trailers = dict(call.trailing_metadata())
        assert (trailers["kind"], trailers["raw-bin"]) == ("zebra", b"\0\xff")
        assert "request_id" in trailers
        answer = zoo.Say(word("compressed", bytes(10_000)), metadata=ONE)
        assert answer.data == bytes(10_000)


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "code", "details"),
        [
            ("coded", grpc.StatusCode.ALREADY_EXISTS, "there is one"),
            ("coded failure", grpc.StatusCode.FAILED_PRECONDITION, "not today"),
            ("status error", grpc.StatusCode.OUT_OF_RANGE, "too far"),
        ],
    )
    def test_codes_of_user_code(self, zoo: Any, text: str, code: Any, details: str) -> None:
        error = failure(lambda: zoo.Say(word(text), metadata=ONE))
        assert (error.code(), error.details()) == (code, details)
        assert ("kind", "zebra") in error.trailing_metadata() or text != "coded failure"

    @pytest.mark.parametrize("text", ["failure", "wrong type"])
    def test_an_exception_tells_nothing_of_the_code(self, zoo: Any, text: str) -> None:
        error = failure(lambda: zoo.Say(word(text), metadata=(*ONE, ("request_id", "r7"))))
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error (request id r7)")

    def test_a_stream_that_fails_gives_what_it_had(self, zoo: Any) -> None:
        call = zoo.Count(zoo_pb2.Number(value=100), metadata=ONE)
        got = []

        def read() -> None:
            got.extend(call)

        error = failure(read)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert len(got) == 70

    def test_an_exchange_that_fails(self, zoo: Any) -> None:
        error = failure(lambda: list(zoo.Chat(iter([word("a"), word("fail")]), metadata=ONE)))
        assert error.code() is grpc.StatusCode.INTERNAL

    def test_a_replica_that_dies_in_a_call(self, zoo: Any, folder: Path) -> None:
        serve.run(Zoo.options(name="Mortal").bind(str(folder)), name="mortal", route_prefix="/mortal")
        metadata = (("application", "mortal"),)

        def answers() -> bool:
            try:
                return bool(zoo.Say(word("x"), metadata=metadata, timeout=WAIT_S).text == "said x")
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return False

        wait_for(answers)
        error = failure(lambda: zoo.Say(word("die"), metadata=metadata))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "died" in error.details()
        wait_for(answers)  # by the next replica
        got = []

        def chat() -> None:
            got.extend(zoo.Chat(iter([word("a"), word("die")]), metadata=metadata))

        error = failure(chat)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert [answer.text for answer in got] in ([], ["hello"], ["hello", "A"])
        serve.delete("mortal")

    def test_a_method_that_the_deployment_lacks(self, zoo: Any) -> None:
        error = failure(lambda: zoo.Absent(word("x"), metadata=ONE))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "'Absent'" in error.details()

    def test_a_method_that_no_servicer_has(self, channel: grpc.Channel) -> None:
        error = failure(lambda: channel.unary_unary("/a.B/C")(b"", metadata=ONE))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_a_request_that_is_no_message(self, channel: grpc.Channel) -> None:
        call = channel.unary_unary("/retinue.tests.zoo.Zoo/Say")
        error = failure(lambda: call(b"\xff\xff\xff", metadata=ONE))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


class TestEnds:
    def test_a_deadline_of_the_client_cancels_the_handler(self, zoo: Any, folder: Path) -> None:
        error = failure(lambda: zoo.Say(word("hold"), metadata=ONE, timeout=0.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: (folder / "hold cancelled").exists())
        (folder / "hold begun").unlink()
        (folder / "hold cancelled").unlink()

    def test_a_deadline_in_the_metadata(self, zoo: Any, folder: Path) -> None:
        metadata = (*ONE, ("x-request-timeout-seconds", "0.3"))
        error = failure(lambda: zoo.Say(word("hold"), metadata=metadata, timeout=WAIT_S))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: (folder / "hold cancelled").exists())
        (folder / "hold begun").unlink()
        (folder / "hold cancelled").unlink()

    def test_a_cancelled_call_cancels_the_handler(self, zoo: Any, folder: Path) -> None:
        call = zoo.Say.future(word("hold"), metadata=ONE)
        wait_for(lambda: (folder / "hold begun").exists())
        assert call.cancel()
        wait_for(lambda: (folder / "hold cancelled").exists())
        (folder / "hold begun").unlink()
        (folder / "hold cancelled").unlink()

    def test_a_cancelled_exchange_cancels_the_handler(self, zoo: Any, folder: Path) -> None:
        is_over = threading.Event()

        def requests() -> Iterator[Any]:
            yield word("hold")
            is_over.wait(WAIT_S)

        call = zoo.Chat(requests(), metadata=ONE)
        wait_for(lambda: (folder / "chat begun").exists())
        call.cancel()
        is_over.set()
        wait_for(lambda: (folder / "chat cancelled").exists())

    def test_a_client_that_leaves_does_not_stop_what_it_asked_to_go_on(self, zoo: Any, folder: Path) -> None:
        # "hold" would never end: the deployment `Narrow` ends when it is told.
        gate = folder / "shielded"
        gate.mkdir()
        serve.run(Narrow.options(name="Shielded").bind(str(gate)), name="shielded", route_prefix="/shielded")
        metadata = (("application", "shielded"), ("x-request-disconnect-disabled", "1"))
        call = wait_for_app(zoo, "go on", metadata)
        wait_for(lambda: (gate / "go on").exists())
        call.cancel()
        second = zoo.Say.future(word("next"), metadata=metadata)
        (gate / "open").touch()
        assert second.result(WAIT_S).text == "next"  # its one slot was free only after the first had ended
        serve.delete("shielded")

    def test_a_full_queue(self, zoo: Any, folder: Path) -> None:
        gate = folder / "narrow"
        gate.mkdir()
        serve.run(Narrow.bind(str(gate)), name="narrow", route_prefix="/narrow")
        metadata = (("application", "narrow"),)
        calls = [wait_for_app(zoo, "first", metadata)]
        wait_for(lambda: (gate / "first").exists())
        calls += [zoo.Say.future(word(f"more{n}"), metadata=metadata) for n in range(3)]
        refused = wait_for(lambda: [call for call in calls if call.done()])
        wait_for(lambda: sum(call.done() for call in calls) == 2)
        error = refused[0].exception()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        (gate / "open").touch()
        for call in calls:
            if call.exception(WAIT_S) is None:
                assert call.result().text in {"first", "more0", "more1", "more2"}
        serve.delete("narrow")


def wait_for_app(zoo: Any, text: str, metadata: Any) -> Any:
    """Begin a call, once the proxy knows the application."""

    def begin() -> Any:
        call = zoo.Say.future(word(text), metadata=metadata)
        try:
            error = call.exception(0.2)
        except grpc.FutureTimeoutError:
            return call
        return None if error is not None and error.code() is grpc.StatusCode.NOT_FOUND else call

    return wait_for(begin)


class TestLooking:
    def test_the_access_log_has_a_line_for_each_call(self, zoo: Any) -> None:
        zoo.Say(word("x"), metadata=(*ONE, ("request_id", "logged-1")))
        failure(lambda: zoo.Say(word("coded"), metadata=(*ONE, ("request_id", "logged-2"))))
        controller = retinue.get_actor(CONTROLLER_NAME, namespace="serve")
        details = json.loads(retinue.get(controller.details.remote()))
        log = Path(next(iter(details["proxies"].values()))["log_file_path"])

        def lines() -> list[str]:
            return [line for line in log.read_text().splitlines() if " logged-" in line]

        first, second = wait_for(lambda: lines() if len(lines()) == 2 else None)
        assert " grpc ipv4:127.0.0.1:" in first
        assert " POST /retinue.tests.zoo.Zoo/Say OK " in first
        assert " ALREADY_EXISTS " in second

    def test_metrics_count_calls_by_code(self, zoo: Any) -> None:
        import httpx

        zoo.Say(word("x"), metadata=ONE)
        page = httpx.get(f"http://{targets('HTTP')[0]}/metrics").text
        found = [
            line for line in page.splitlines() if "serve_num_grpc_requests" in line and "Zoo/Say" in line
        ]
        assert any('status_code="OK"' in line and 'application="one"' in line for line in found)


def test_a_servicer_that_is_not_there_is_told() -> None:
    from retinue.serve import servicers

    with pytest.raises(ModuleNotFoundError):
        servicers.load("tests.serve.protos.nothing.add_XServicer_to_server")
    with pytest.raises(TypeError, match="registers no methods"):
        servicers.load("builtins.print")
    with pytest.raises(TypeError, match="is no function"):
        servicers.load("math.pi")


def test_a_proxy_that_drains_finishes_its_calls_and_an_only_application_need_not_be_named(
    address: str, channel: grpc.Channel, zoo: Any, tmp_path: Path
) -> None:
    """The last one with this cluster: its proxy is over after it."""
    serve.run(Narrow.bind(str(tmp_path)), name="only", route_prefix="/only")
    for name in applications(channel) - {"only"}:
        serve.delete(name)
    wait_for(lambda: applications(channel) == {"only"})
    call = zoo.Say.future(word("held"))
    wait_for(lambda: (tmp_path / "held").exists())
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    controller = retinue.get_actor(CONTROLLER_NAME, namespace="serve")
    proxies = json.loads(retinue.get(controller.details.remote()))["proxies"]
    proxy = retinue.get_actor(next(iter(proxies.values()))["actor_name"], namespace="serve")
    draining = proxy.drain.remote()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    with grpc.insecure_channel(address) as late:
        error = failure(lambda: zoo_pb2_grpc.ZooStub(late).Say(word("late"), timeout=WAIT_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert not call.done()
    (tmp_path / "open").touch()
    assert call.result(WAIT_S).text == "held"
    retinue.get(draining, timeout=WAIT_S)
