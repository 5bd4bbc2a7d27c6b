"""A proxy that may have only so many connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from retinue.serve.messages import HttpHead
from retinue.serve.proxy.server import Limits
from tests.serve.proxy.servers import FunctionRouter, serving


async def echo(head: HttpHead, body: bytes) -> Any:
    return 200, [], b"here"


REQUEST = b"GET /app HTTP/1.1\r\nhost: here\r\n\r\n"


@pytest.mark.parametrize("limit", [1, 3])
def test_further_connections_wait_in_the_queue_of_the_listener(limit: int) -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo), limits=Limits(max_connections=limit)) as served:
            clients = [served.client() for _ in range(limit + 2)]
            opened = [await client.__aenter__() for client in clients]  # the kernel takes them
            for client in opened:
                client.send(REQUEST)
            for client in opened[:limit]:
                assert (await client.answer())[2] == b"here"
            assert served.server.open_connections == limit
            waiting = asyncio.ensure_future(opened[limit].answer())
            opened[0].send(REQUEST)
            assert (await opened[0].answer())[2] == b"here"
            assert not waiting.done()
            await clients[0].__aexit__(None, None, None)
            assert (await waiting)[2] == b"here"
            await clients[1].__aexit__(None, None, None)
            if limit > 1:
                assert (await opened[limit + 1].answer())[2] == b"here"
            for client in clients[2:]:
                await client.__aexit__(None, None, None)

    asyncio.run(asyncio.wait_for(check(), 30))
