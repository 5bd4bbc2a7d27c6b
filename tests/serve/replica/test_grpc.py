"""gRPC calls as a replica's door sees them: what user code is given, and what becomes of what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from retinue.core.doors import DoorRefusedError
from retinue.serve import grpc_status
from retinue.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    gRPCStatusError,
)
from retinue.serve.grpc_util import RetinueServegRPCContext, gRPCInputStream
from retinue.serve.messages import (
    GRPC_HEAD,
    GRPC_MESSAGE,
    REPLICA_DOOR,
    GrpcHead,
    GrpcResponseHead,
    pack,
    unpack,
)
from tests.serve.protos import zoo_pb2
from tests.serve.replica.conftest import Client, Place

SERVICER = "tests.serve.protos.zoo_pb2_grpc.add_ZooServicer_to_server"


def head(method: str, **fields: Any) -> GrpcHead:
    return GrpcHead(f"/retinue.tests.zoo.Zoo/{method}", **{"servicer": SERVICER, **fields})


def body(method: str, message: Any, **fields: Any) -> bytes:
    return pack(head(method, **fields), message.SerializeToString())


async def call(client: Client, method: str, message: Any, **fields: Any) -> tuple[GrpcResponseHead, Any]:
    """What the proxy gets: a head, and the answer's message or None."""
    reply = await client.connection.call(
        REPLICA_DOOR, "grpc", body(method, message, **fields), request_id="r1", trace="t"
    )
    return parsed(reply)


def parsed(reply: bytes) -> tuple[GrpcResponseHead, Any]:
    if reply[:1] == GRPC_MESSAGE:
        return GrpcResponseHead(), reply[1:]
    assert reply[:1] == GRPC_HEAD
    found, message = unpack(GrpcResponseHead, reply[1:])
    return found, bytes(message)


def text_of(message: bytes) -> str:
    return zoo_pb2.Word.FromString(message).text


def word(text: str = "") -> Any:
    return zoo_pb2.Word(text=text)


class Zoo:
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ends: list[str] = []
        self.stream: gRPCInputStream[Any] | None = None

    async def Say(self, request: Any, grpc_context: RetinueServegRPCContext) -> Any:
        match request.text:
            case "hold":
                self.begun.set()
                try:
                    await self.go_on.wait()
                finally:
                    self.ends.append("held")
            case "full":
                raise BackPressureError(1, 1)
            case "generate":
                return (n for n in range(3))
            case "ids":
                grpc_context.set_trailing_metadata([("a", "1")])
                grpc_context.set_trailing_metadata([("b", "2")])
                return word(f"{grpc_context.request_id()} {grpc_context.peer()}")
            case "fail":
                raise ValueError("secret")
        return word(request.text)

    def Count(self, request: Any) -> Iterator[Any]:
        for value in range(request.value):
            yield zoo_pb2.Number(value=value)

    async def Sum(self, requests: gRPCInputStream[Any]) -> Any:
        return zoo_pb2.Number(value=sum([request.value async for request in requests]))

    async def Chat(self, requests: gRPCInputStream[Any]) -> AsyncIterator[Any]:
        self.stream = requests
        async for request in requests:
            self.begun.set()
            yield request


def test_a_call_and_what_its_context_knows(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo)
        answered, message = await call(client, "Say", word("hello"))
        assert (answered, text_of(message)) == (GrpcResponseHead(), "hello")
        answered, message = await call(client, "Say", word("ids"), peer="ipv4:1.2.3.4:5")
        assert text_of(message) == "r1 ipv4:1.2.3.4:5"
        assert [tuple(pair) for pair in answered.trailing_metadata] == [("b", "2")]
        await place.idle()

    run(check)


def test_streams(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo)
        items = client.connection.stream(REPLICA_DOOR, "grpc", body("Count", zoo_pb2.Number(value=100)))
        assert [zoo_pb2.Number.FromString(item[1:]).value async for item in items] == list(range(100))

        async def requests() -> AsyncIterator[bytes]:
            yield pack(head("Sum"))
            for value in range(10):
                yield zoo_pb2.Number(value=value).SerializeToString()

        accepted, answer = [i async for i in client.connection.exchange(REPLICA_DOOR, "grpc", requests())]
        assert accepted == b""
        assert zoo_pb2.Number.FromString(parsed(answer)[1]).value == 45
        await place.idle()

    run(check)


@pytest.mark.parametrize(
    ("method", "text", "code", "details"),
    [
        ("Say", "full", grpc_status.RESOURCE_EXHAUSTED, "1 requests wait already"),
        ("Say", "fail", grpc_status.INTERNAL, "internal error (request id r1)"),
        ("Say", "generate", grpc_status.INTERNAL, "internal error (request id r1)"),
        ("Absent", "", grpc_status.UNIMPLEMENTED, "'Absent'"),
    ],
)
def test_failures_become_a_status(run: Any, method: str, text: str, code: int, details: str) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo)
        answered, message = await call(client, method, word(text))
        assert answered.code == code
        assert details in answered.details
        assert message == b""
        await place.idle()

    run(check)


def test_errors_are_shown_where_that_is_asked_for(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo, shows_errors=True)
        answered, _ = await call(client, "Say", word("fail"))
        assert "ValueError: secret" in answered.details

    run(check)


def test_a_servicer_that_the_replica_cannot_import(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo)
        answered, _ = await call(client, "Say", word(), servicer="not.there.add")
        assert answered.code == grpc_status.INTERNAL
        assert "'not.there.add'" in answered.details

    run(check)


def test_a_method_that_does_not_generate_in_a_streamed_call(run: Any) -> None:
    class Wrong:
        async def Count(self, request: Any) -> Any:
            return request

    async def check(place: Place) -> None:
        client = await place.start(Wrong)
        stream = client.connection.stream(REPLICA_DOOR, "grpc", body("Count", zoo_pb2.Number(value=1)))
        (item,) = [item async for item in stream]
        assert parsed(item)[0].code == grpc_status.INTERNAL
        await place.idle()

    run(check)


def test_a_full_replica_refuses(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo, limit=1)
        held = asyncio.create_task(call(client, "Say", word("hold")))
        await place.user.instance.begun.wait()
        connection = client.connection
        for stream in (
            connection.stream(REPLICA_DOOR, "grpc", body("Count", word())),
            connection.exchange(REPLICA_DOOR, "grpc", _nothing()),
        ):
            with pytest.raises(DoorRefusedError):
                await stream.read()
        with pytest.raises(DoorRefusedError):
            await call(client, "Say", word("x"))
        place.user.instance.go_on.set()
        assert text_of((await held)[1]) == "hold"
        await place.idle()

    run(check)


async def _nothing() -> AsyncIterator[bytes]:
    yield pack(head("Sum"))


def test_a_cancelled_call_ends_its_code_unless_that_ignores_it(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo)
        zoo = place.user.instance
        for ignores in (False, True):
            zoo.begun.clear()
            held = asyncio.create_task(call(client, "Say", word("hold"), ignores_disconnect=ignores))
            await zoo.begun.wait()
            held.cancel()
            await asyncio.wait((held,))
            if ignores:
                await client.connection.ping()  # the cancel has been seen
                assert zoo.ends == ["held"]
                zoo.go_on.set()
            await place.idle()
        assert zoo.ends == ["held", "held"]

    run(check)


def test_a_client_that_leaves_an_exchange_is_seen_by_its_stream(run: Any) -> None:
    async def check(place: Place) -> None:
        client = await place.start(Zoo)

        async def requests() -> AsyncIterator[bytes]:
            yield pack(head("Chat"))
            yield word("a").SerializeToString()
            await asyncio.Event().wait()

        stream = client.connection.exchange(REPLICA_DOOR, "grpc", requests())
        assert await anext(stream) == b""
        assert text_of((await anext(stream))[1:]) == "a"
        await stream.aclose()
        await place.idle()
        requests_of_it = place.user.instance.stream
        assert requests_of_it.is_cancelled()
        assert [item async for item in requests_of_it] == []

    run(check)


def test_an_input_stream_can_be_left() -> None:
    async def check() -> None:
        async def messages() -> AsyncIterator[int]:
            yield 1
            yield 2

        stream = gRPCInputStream(messages())
        assert not stream.is_exhausted
        assert await anext(stream) == 1
        stream.cancel()
        assert stream.is_cancelled()
        assert [item async for item in stream] == []
        assert stream.is_exhausted
        assert [item async for item in gRPCInputStream(messages())] == [1, 2]

    asyncio.run(check())


class FakeContext:
    """As grpc's, for tests of users."""

    def auth_context(self) -> dict[str, Any]:
        return {"transport_security_type": [b"ssl"]}

    def code(self) -> Any:
        return None

    details = code

    def invocation_metadata(self) -> Any:
        return (
            ("application", "one"),
            ("request_id", "r"),
            ("multiplexed_model_id", "m"),
            ("tracestate", "s"),
        )

    def peer(self) -> str:
        return "ipv4:1.2.3.4:5"

    def peer_identities(self) -> Any:
        return [b"me"]

    def peer_identity_key(self) -> str:
        return "x509_common_name"

    def trailing_metadata(self) -> Any:
        return (("request_id", "r"),)


def test_a_context_made_of_one_of_grpcs() -> None:
    context = RetinueServegRPCContext(FakeContext())
    assert (context.application(), context.request_id(), context.multiplexed_model_id()) == ("one", "r", "m")
    assert (context.traceparent(), context.tracestate()) == (None, "s")
    assert (context.peer(), context.peer_identity_key()) == ("ipv4:1.2.3.4:5", "x509_common_name")
    assert (context.peer_identities(), list(context.auth_context())) == ([b"me"], ["transport_security_type"])
    context.set_code(grpc.StatusCode.ABORTED)
    context.set_details("why")
    context.set_trailing_metadata([("a", "1")])
    assert (context.code(), context.details()) == (grpc.StatusCode.ABORTED, "why")
    assert context.trailing_metadata() == [("request_id", "r"), ("a", "1")]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackPressureError(1, 1), "RESOURCE_EXHAUSTED"),
        (DeploymentUnavailableError("d"), "UNAVAILABLE"),
        (ReplicaUnavailableError("r"), "UNAVAILABLE"),
        (gRPCStatusError(ValueError("x"), grpc.StatusCode.DATA_LOSS), "DATA_LOSS"),
        (gRPCStatusError(ValueError("x")), "INTERNAL"),
        (ValueError("x"), "INTERNAL"),
    ],
)
def test_each_error_has_its_code(error: Exception, code: str) -> None:
    assert grpc_status.name_of(grpc_status.of_error(error, "r").code) == code
    assert getattr(grpc.StatusCode, code).value[0] == grpc_status.of_error(error, "r").code
    assert [status.name for status in grpc.StatusCode] == list(grpc_status.NAMES)
