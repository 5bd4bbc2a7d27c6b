"""Bare uvicorn and Starlette: one process, no access log, what everything else is measured against."""

import asyncio
import sys

import uvicorn
from common import CHUNKS, PATH, event, timed_event
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


async def echo(request: Request) -> Response:
    return JSONResponse(await request.json())


async def raw(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def stream(request: Request) -> Response:
    pause_ms = int(request.query_params.get("pause_ms", 0))
    chunks = int(request.query_params.get("chunks", CHUNKS))
    return StreamingResponse(_events(chunks, pause_ms / 1e3), media_type="text/event-stream")


async def _events(chunks: int, pause_s: float):
    for number in range(chunks):
        if pause_s:
            await asyncio.sleep(pause_s if number else 0)
            yield timed_event(number)
        else:
            yield event(number)


WORKS = {"echo": echo, "raw": raw, "stream": stream}


def main(work: str, port: int) -> None:
    app = Starlette(routes=[Route(PATH, WORKS[work], methods=["GET", "POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
