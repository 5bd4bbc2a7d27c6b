"""What a gRPC call costs through the proxy: unary echo, beside a grpc.aio server that answers directly.

Run it on a quiet machine:  python loadtests/grpc_echo.py [--seconds 5]

Both servers run on uvloop in a process of their own, the client is one grpc.aio process with 64 calls in
flight, then with one. The Python client takes about a core itself, so figures are floors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop

import retinue
from retinue import serve
from retinue.serve.messages import CONTROLLER_NAME

METHOD = "/retinue.tests.zoo.Zoo/Say"
SERVICER = "tests.serve.protos.zoo_pb2_grpc.add_ZooServicer_to_server"


@serve.deployment(max_ongoing_requests=200)
class Echo:
    async def Say(self, request: Any) -> Any:
        return request


def run_direct(out: Connection) -> None:
    """A server without anything between."""
    from tests.serve.protos import zoo_pb2_grpc

    class Zoo(zoo_pb2_grpc.ZooServicer):
        async def Say(self, request: Any, context: Any) -> Any:
            return request

    async def serve_it() -> None:
        server = grpc.aio.server()
        zoo_pb2_grpc.add_ZooServicer_to_server(Zoo(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        out.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    uvloop.run(serve_it())


async def measure(address: str, seconds: float, in_flight: int) -> tuple[float, list[float]]:
    """Calls per second, and what each took."""
    from tests.serve.protos import zoo_pb2, zoo_pb2_grpc

    times: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        say = zoo_pb2_grpc.ZooStub(channel).Say
        request = zoo_pb2.Word(text="hello")
        for _ in range(200):
            await say(request)
        until = time.perf_counter() + seconds

        async def repeat() -> None:
            while (began := time.perf_counter()) < until:
                await say(request)
                times.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(repeat() for _ in range(in_flight)))
        return len(times) / (time.perf_counter() - began), times


def report(name: str, address: str, seconds: float) -> None:
    rate, times = uvloop.run(measure(address, seconds, 64))
    alone, single = uvloop.run(measure(address, seconds, 1))
    print(
        f"{name}: 64 in flight {rate:,.0f}/s, p50 {statistics.median(times) * 1000:.2f} ms; "
        f"one call p50 {statistics.median(single) * 1000:.3f} ms, {alone:,.0f}/s"
    )


def find_address() -> str:
    """Where the proxy listens, once it does."""
    controller = retinue.get_actor(CONTROLLER_NAME, namespace="serve")
    until = time.monotonic() + 20
    while True:
        details = json.loads(retinue.get(controller.details.remote()))
        for group in details["target_groups"]:
            if group["protocol"] == "gRPC":
                return f"{group['targets'][0]['ip']}:{group['targets'][0]['port']}"
        if time.monotonic() > until:
            raise SystemExit(f"no proxy serves gRPC: {details['proxies']}")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    direct = multiprocessing.get_context("spawn").Process(target=run_direct, args=(theirs,), daemon=True)
    direct.start()
    direct_address = ours.recv()
    retinue.init(num_cpus=4)
    try:
        serve.start(
            http_options={"port": 0},
            grpc_options={"port": 0, "grpc_servicer_functions": [SERVICER]},
            proxy_location="HeadOnly",
        )
        serve.run(Echo.bind(), name="echo")
        address = find_address()
        for _ in range(options.rounds):
            report("direct ", direct_address, options.seconds)
            report("retinue", address, options.seconds)
    finally:
        serve.shutdown()
        retinue.shutdown()
        direct.terminate()
        direct.join()


if __name__ == "__main__":
    main()
