"""Rows about a server that changes, breaks or is asked for too much, under load. Only Retinue runs them."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from servebench import http, load
from servebench.catalogue import Figure, Figures, Setting, Target, less, more, row
from servebench.control import CONTROLLER, PROXY, REPLICA, Control, controlled
from servebench.processes import private_bytes
from servebench.stats import OK, Tally, growth, percentile

RATE = 300.0
BEFORE_S = 1.0  # of load before the event, and after it
AFTER_S = 3.0
NONE = Target(0)
HANDLER_S = 0.1
CAPACITY = 400.0
OVERLOAD = 4000.0
LEAVING = 1000

Event = Callable[[Control], Awaitable[None]]
GET = http.request()  # may be repeated
POST = http.json_request({})  # may not


def _is_from_sleeper(answer: http.Answer) -> bool:
    return {"version", "pid"} <= answer.json().keys()


async def _under_load(
    control: Control, event: Event, data: bytes = POST, *, fresh: bool = False, after_s: float = AFTER_S
) -> tuple[Tally, float]:
    """A constant rate before, during and after the event; what came of it, and when the event began."""
    loop = load.OpenLoop(control.server.address, lambda _: data, _is_from_sleeper, RATE, fresh=fresh)
    running = asyncio.ensure_future(loop.run(120.0))
    await asyncio.sleep(BEFORE_S)
    began = time.perf_counter()
    await event(control)
    await asyncio.sleep(after_s)
    loop.stop()
    return await running, began


def _chaos(setting: Setting, event: Event, data: bytes = POST, *, fresh: bool = False) -> tuple[Tally, float]:
    with controlled(setting.folder) as control:
        control.deploy()
        tally, began = load.run(_under_load(control, event, data, fresh=fresh))
    if tally.failed:
        print(f"  {dict(tally.counts)}", flush=True)
    return tally, began


async def _order(control: Control, **fields: Any) -> None:
    await asyncio.to_thread(control.deploy, **fields)


async def _kill(control: Control, prefix: str) -> None:
    pids = await asyncio.to_thread(control.pids, prefix)
    os.kill(pids[0], signal.SIGKILL)


def _failures(name: str, title: str) -> Figure:
    return less(name, title, "", NONE)


@row("", _failures("rolling_update", "rolling update under load: failed requests"))
def rolling_update(setting: Setting) -> Figures:
    tally, _ = _chaos(setting, lambda control: _order(control, version="2"))
    return {"rolling_update": tally.failed}


@row("", _failures("scaling", "scale up to 4 and down to 1 under load: failed requests"))
def scaling(setting: Setting) -> Figures:
    async def event(control: Control) -> None:
        await _order(control, replicas=4)
        await asyncio.sleep(1.0)
        await _order(control, replicas=1)

    tally, _ = _chaos(setting, event)
    return {"scaling": tally.failed}


@row("", _failures("kill_controller", "kill -9 of the controller under load: failed requests"))
def kill_controller(setting: Setting) -> Figures:
    tally, _ = _chaos(setting, lambda control: _kill(control, CONTROLLER))
    return {"kill_controller": tally.failed}


@row("", _failures("kill_head", "kill -9 of the head under load: failed requests"))
def kill_head(setting: Setting) -> Figures:
    async def event(control: Control) -> None:
        os.kill(control.head_pid(), signal.SIGKILL)

    tally, _ = _chaos(setting, event)
    return {"kill_head": tally.failed}


@row(
    "",
    _failures("kill_replica", "kill -9 of a replica under load: failed requests that may be repeated"),
    less(
        "kill_replica_others",
        "  failed requests that may not, beyond what it can have been executing",
        "",
        NONE,
    ),
    less("kill_replica_recovery", "  full rate again after", "s", Target(2)),
)
def kill_replica(setting: Setting) -> Figures:
    kill: Event = lambda control: _kill(control, REPLICA)  # noqa: E731
    repeatable, _ = _chaos(setting, kill, GET)
    others, began = _chaos(setting, kill, POST)
    # Those that were under way when it died: at 300/s and 20 ms each there are 6 at a time on both replicas.
    executing = sum(
        due <= began + 0.2 and due + took >= began
        for due, took, outcome in zip(others.due, others.took_s, others.outcome, strict=True)
        if outcome != OK
    )
    return {
        "kill_replica": repeatable.failed,
        "kill_replica_others": others.failed - min(executing, 20),
        "kill_replica_recovery": others.recovered_after_s(began, 0.999),
    }


@row(
    "",
    _failures("kill_proxy", "kill -9 of the proxy under load: new connections refused"),
    less("kill_proxy_broken", "  requests that it had when it died", ""),
    less("kill_proxy_outage", "  longest time without an answer", "s"),
)
def kill_proxy(setting: Setting) -> Figures:
    tally, _ = _chaos(setting, lambda control: _kill(control, PROXY), fresh=True)
    return {
        "kill_proxy": tally.counts["refused"],
        "kill_proxy_broken": tally.failed - tally.counts["refused"],
        "kill_proxy_outage": tally.outage_s(),
    }


@row(
    "",
    less("leaving", "1,000 clients leaving in mid-request: all told after", "s", Target(1)),
    less("leaving_growth", "  growth of private memory over three times", "%"),
)
def leaving(setting: Setting) -> Figures:
    longest = 0.0
    with controlled(setting.folder) as control:
        control.deploy(replicas=1, delay_s=30.0, max_ongoing_requests=2 * LEAVING)
        early: dict[int, int] = {}
        for number in range(4):
            load.run(load.leave(control.server.address, POST, clients=LEAVING, after_s=1.0))
            longest = max(longest, _until_none_ongoing(control))
            if number == 0:
                early = _private(control)
        grown = growth(early, _private(control))
    return {"leaving": longest, "leaving_growth": grown * 100}


def _until_none_ongoing(control: Control) -> float:
    data = http.request(f"{http.PATH}?count=1")
    started = time.perf_counter()
    while time.perf_counter() - started < 30:
        if http.ask(control.server.address, data).json()["ongoing"] == 0:
            return time.perf_counter() - started
    raise AssertionError("requests are still ongoing 30 s after their clients left")


@row(
    "",
    less(
        "overload",
        "overload, 4,000/s against 400/s: accepted p99 against that at 40 clients",
        "x",
        Target(1.5),
    ),
    more("overload_goodput", "  goodput, share of capacity", "", Target(0.9)),
    less("overload_growth", "  growth of private memory", "%", Target(5)),
    less("overload_rejected", "  time to a 503, p99", "ms"),
    less("overload_others", "  other outcomes, and 503 without Retry-After", "", NONE),
)
def overload(setting: Setting) -> Figures:
    seconds = 10.0 if setting.is_quick else 60.0
    with controlled(setting.folder) as control:
        control.deploy(
            replicas=2,
            delay_s=HANDLER_S,
            max_ongoing_requests=20,
            max_queue_wait_s=0.05,
        )
        address = control.server.address
        calm = load.run(
            load.closed_loop(address, lambda _: POST, _is_from_sleeper, clients=40, seconds=setting.seconds)
        )
        flood = load.OpenLoop(address, lambda _: POST, _is_from_sleeper, OVERLOAD)
        without_hint = 0

        def hear(answer: http.Answer) -> None:
            nonlocal without_hint
            without_hint += answer.status == 503 and b"retry-after" not in answer.headers

        flood.on_answer = hear
        load.run(load.open_loop(address, POST, _is_from_sleeper, rate=OVERLOAD, seconds=2.0))
        early = _private(control)
        tally = load.run(flood.run(seconds))
        late = _private(control)
    others = sum(count for outcome, count in tally.counts.items() if outcome not in (OK, "503"))
    if others:
        print(f"  {dict(tally.counts)}", flush=True)
    return {
        "overload": percentile(tally.times_of(), 99) / percentile(calm.times_of(), 99),
        "overload_goodput": tally.rate(seconds) / CAPACITY,
        "overload_growth": growth(early, late) * 100,
        "overload_rejected": percentile(tally.times_of("503"), 99) * 1e3,
        "overload_others": others + without_hint,
    }


def _private(control: Control) -> dict[int, int]:
    return {process.pid: private_bytes(process) for process in control.server.processes()}
