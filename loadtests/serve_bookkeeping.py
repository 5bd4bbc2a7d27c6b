"""What serve counts and logs of a request, timed by itself: `python loadtests/serve_bookkeeping.py`.

The parts are those of the running code, called as it calls them, in one process and without sockets.
"""

from __future__ import annotations

import asyncio
import io
import time
import timeit

from retinue.serve.access_log import Access, AccessLog
from retinue.serve.context import RequestContext
from retinue.serve.logs import LogSettings, replica_access_form
from retinue.serve.messages import CallHead, HttpHead, HttpResponseHead, pack
from retinue.serve.proxy.measures import RequestMeasures as ProxyMeasures
from retinue.serve.proxy.requests import IdMaker, Passage
from retinue.serve.replica.measures import RequestMeasures

NUMBER = 20_000
REPEAT = 7


def entered(head: HttpHead | CallHead) -> RequestContext:
    context = RequestContext("/app", "0123456789abcdef", "app")
    context.head = head
    context.began = time.monotonic()
    return context


def best_us(function: object) -> float:
    return min(timeit.repeat(function, number=NUMBER, repeat=REPEAT)) / NUMBER * 1e6  # type: ignore[arg-type]


def replica(*, logs: bool) -> RequestMeasures:
    measures = RequestMeasures("app", "Model", "r1", lambda: 0)
    if logs:
        form = replica_access_form(LogSettings(), "replica", "app#Model#r1")
        measures.access_log = AccessLog(io.StringIO(), form=form, limit=10**9)
    return measures


async def main() -> None:
    reply = pack(HttpResponseHead(200, [(b"content-type", b"application/json")]), b"{}")
    http = entered(HttpHead("GET", "/app/x", b"/app/x", b"", []))
    call = entered(CallHead("predict"))
    passage = Passage("GET", "/app/x", {}, IdMaker())
    passage.route, passage.app_name = "/app", "app"
    proxy = ProxyMeasures()
    rows = []
    for name, context in (("HTTP", http), ("handle", call)):
        plain, logged = replica(logs=False), replica(logs=True)
        rows.append(
            (f"replica, {name}: counts and times", best_us(lambda c=context, m=plain: m.answered(c, reply)))
        )
        rows.append(
            (
                f"replica, {name}: the same and a line",
                best_us(lambda c=context, m=logged: m.answered(c, reply)),
            )
        )
        log = logged.access_log
        assert log is not None
        began = time.perf_counter()
        log.flush()
        rows.append(
            (f"replica, {name}: writing a line", (time.perf_counter() - began) / (NUMBER * REPEAT) * 1e6)
        )
    rows.append(("proxy: counts and times", best_us(lambda: proxy.finished(passage, 200, 0.003))))
    access = AccessLog(io.StringIO(), is_json=False, limit=10**9)
    line = (time.time(), "127.0.0.1:1", "GET", "/app/x", 200, 0.003, "0123", "/app", "app")
    rows.append(("proxy: a line", best_us(lambda: access.add(Access(*line)))))
    began = time.perf_counter()
    access.flush()
    rows.append(("proxy: writing a line", (time.perf_counter() - began) / (NUMBER * REPEAT) * 1e6))
    for name, us in rows:
        print(f"{name:45} {us:6.2f} us")
    proxy.close()


if __name__ == "__main__":
    asyncio.run(main())
