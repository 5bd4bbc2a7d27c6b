"""Rows that any peer can run: the same work, the same load, answers per second and times."""

import json
import statistics
import subprocess

from servebench import http, load, payloads, wrk
from servebench.catalogue import Figures, Setting, Target, at_least, less, more, over, row
from servebench.peers import APPS
from servebench.stats import percentile
from servebench.texts import texts

CONNECTIONS = 64
STREAMS = 32
PAUSE_MS = 5
WARM_S = 1.0  # of the fixed rate, not counted
SAMPLE_S = 0.2  # of our own client's checks, before and after each run of wrk


@row(
    "echo",
    more(
        "echo", "no-op JSON echo, 64 connections", "/s",
        at_least(0.7, "uvicorn"), at_least(2, "mosec"), at_least(3, "ray-tuned"), at_least(60, "ray"),
    ),
    less("echo_p99", "  p99 of it", "ms"),
    less("echo_one", "  one connection, p50", "ms", over(0.1, "uvicorn")),
    less("echo_half", "  fixed rate at half of the first row, p99", "ms", Target(5)),
)  # fmt: skip
def echo(setting: Setting) -> Figures:
    address, data = setting.served.address, payloads.echo()
    report, rate = _wrk(setting, payloads.ECHO_LUA, data, payloads.is_echo)
    alone = load.one_by_one(address, data, payloads.is_echo, setting.seconds / 2)
    _all_right(alone)
    check = payloads.remembering(payloads.is_echo)
    half = load.run(load.open_loop(address, data, check, rate=rate / 2, seconds=setting.seconds + WARM_S))
    _all_right(half)
    return {
        "echo": rate,
        "echo_p99": report.p99_s * 1e3,
        "echo_one": statistics.median(alone.took_s) * 1e3,
        "echo_half": percentile(half.without_first(WARM_S).took_s, 99) * 1e3,
    }


@row(
    "stream",
    more(
        "stream", "32 streams of 200 small chunks, all", "chunks/s",
        at_least(0.6, "uvicorn"), at_least(2.5, "ray-tuned"),
    ),
    less("stream_first", "  time to first chunk, one stream, p50", "ms", over(0.3, "uvicorn")),
    less("stream_delay", "  32 streams, 5 ms between chunks: delay of a chunk, p99", "ms", Target(2)),
    less("stream_delay_over", "  32 streams, 5 ms between chunks: delay of a chunk, p50", "ms"),
)  # fmt: skip
def stream(setting: Setting) -> Figures:
    address = setting.served.address

    def run(chunks: int, pause_ms: int) -> load.Streams:
        data = payloads.stream(chunks, pause_ms)
        done = load.run(load.streams(address, data, clients=STREAMS, chunks=chunks, seconds=setting.seconds))
        assert not done.wrong, f"streams were not right: {dict(done.wrong)}"
        return done

    run(payloads.CHUNKS, 0)
    at_once = run(payloads.CHUNKS, 0)
    figures = {"stream": at_once.events / at_once.seconds}
    if setting.peer.pauses_streams:
        data, check = payloads.stream(3, PAUSE_MS), payloads.is_stream(3)
        first = load.one_by_one(address, data, check, setting.seconds / 2, to_first=True)
        _all_right(first)
        paused = run(payloads.CHUNKS, PAUSE_MS)
        figures["stream_first"] = statistics.median(first.took_s) * 1e3
        figures["stream_delay"] = percentile(paused.delays_s, 99) * 1e3
        figures["stream_delay_over"] = statistics.median(paused.delays_s) * 1e3
    return figures


@row(
    "raw",
    more(
        "raw", "220 KB raw bodies, 16 connections, answer is the length", "/s",
        at_least(0.35, "uvicorn"), Target(3000),
    ),
)  # fmt: skip
def raw(setting: Setting) -> Figures:
    _, rate = _wrk(setting, payloads.RAW_LUA, payloads.raw(), payloads.is_raw, connections=16)
    return {"raw": rate}


@row("batch", more("batch", "batches of up to 32 that take 5 ms each, 64 clients", "/s"))
def batch(setting: Setting) -> Figures:
    as_list = setting.peer.name == "bentoml"
    data, check = payloads.batch(21, as_list=as_list), payloads.is_double(21)
    tally = load.run(
        load.closed_loop(
            setting.served.address, lambda _: data, check, clients=CONNECTIONS, seconds=setting.seconds
        )
    )
    _all_right(tally)
    return {"batch": tally.rate(setting.seconds)}


@row(
    "embed",
    more("embed", "embeddings, batches of up to 32, 64 clients", "/s"),
    more("embed_share", "  share of the same model's rate without a server", "", Target(0.95)),
)
def embed(setting: Setting) -> Figures:
    as_list = setting.peer.name == "bentoml"
    seconds = 3 * setting.seconds
    offline = _offline_rate(setting, seconds)
    requests = [payloads.embed(n, as_list=as_list) for n in range(len(texts()))]
    tally = load.run(
        load.closed_loop(
            setting.served.address,
            lambda number: requests[number % len(requests)],
            payloads.is_vector,
            clients=CONNECTIONS,
            seconds=seconds,
        )
    )
    _all_right(tally)
    spent = max(d + t for d, t in zip(tally.due, tally.took_s, strict=True)) - min(tally.due)
    rate = len(tally.due) / spent
    return {"embed": rate, "embed_share": rate / offline}


@row("call", less("call", "handle call, deployment to deployment, p50", "ms", Target(0.15)))
def call(setting: Setting) -> Figures:
    calls = 300 if setting.is_quick else 3000
    data = http.request(f"{http.PATH}?n={calls}")
    http.ask(setting.served.address, http.request(f"{http.PATH}?n=300"), timeout_s=60)
    answer = http.ask(setting.served.address, data, timeout_s=60)
    assert answer.is_ok, f"{answer.status} {bytes(answer.body)!r}"
    return {"call": statistics.median(json.loads(answer.body)) / 1e3}


def _wrk(
    setting: Setting, lua: str, data: bytes, check: payloads.Check, connections: int = CONNECTIONS
) -> tuple[wrk.WrkReport, float]:
    """wrk after a warm-up; our own client checks bodies before and after."""
    address = setting.served.address
    url = f"http://127.0.0.1:{setting.served.port}{http.PATH}"
    _all_right(load.one_by_one(address, data, check, SAMPLE_S))
    wrk.run(url, lua, connections=connections, seconds=1, folder=setting.folder)
    report = wrk.run(url, lua, connections=connections, seconds=setting.seconds, folder=setting.folder)
    _all_right(load.one_by_one(address, data, check, SAMPLE_S))
    if report.not_2xx or report.socket_errors:
        raise AssertionError(f"{report.not_2xx} answers not 2xx, {report.socket_errors} socket errors")
    size = http.ask_size(address, data)
    return report, report.rate_of_right_ones(size)


def _all_right(tally: load.Tally) -> None:
    assert tally.due, "nothing was answered"
    assert not tally.failed, f"not all answers were right: {dict(tally.counts)}"


def _offline_rate(setting: Setting, seconds: float) -> float:
    """Texts per second of the model alone, in batches of the same size, in a process of the same peer."""
    command = [setting.peer.python, str(APPS / "offline.py"), str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=setting.peer.environ("embed", setting.folder)
    )
    return float(done.stdout.split()[-1])
