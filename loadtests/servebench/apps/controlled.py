"""Retinue under orders: reads orders as lines of JSON from standard input, answers on a pipe.

`python controlled.py PORT DESCRIPTOR`. Orders: deploy (with options of the deployment below), actors.
"""

import asyncio
import json
import os
import sys
from typing import Any

import retinue
from retinue import serve
from retinue.util.state import list_actors


@serve.deployment
class Sleeper:
    """Answers after `delay_s` with its version and process; counts the requests that it is in."""

    def __init__(self, version: str, delay_s: float) -> None:
        self.version = version
        self.delay_s = delay_s
        self.ongoing = 0

    async def __call__(self, request):
        if request.query_params.get("count"):
            return {"ongoing": self.ongoing}
        self.ongoing += 1
        try:
            await asyncio.sleep(float(request.query_params.get("delay_s", self.delay_s)))
            return {"version": self.version, "pid": os.getpid()}
        finally:
            self.ongoing -= 1


def deploy(version: str, delay_s: float, replicas: int, **options: Any) -> None:
    app = Sleeper.options(num_replicas=replicas, ray_actor_options={"num_cpus": 0}, **options)
    serve.run(app.bind(version, delay_s))


def actors() -> dict[str, int]:
    """The process of each living named actor."""
    return {a.name: a.pid for a in list_actors(limit=1000) if a.state == "ALIVE" and a.name}


def main(port: int, descriptor: int) -> None:
    retinue.init()
    serve.start(http_options={"port": port})
    orders = {"deploy": deploy, "actors": actors}
    with os.fdopen(descriptor, "w", buffering=1) as answers:
        print(json.dumps({"value": None}), file=answers)
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = {"value": orders[order.pop("order")](**order)}
            except Exception as error:  # noqa: BLE001  (it belongs to who gave the order)
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers)
    serve.shutdown()
    retinue.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
