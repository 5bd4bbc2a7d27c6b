"""The load generators against a real server of the standard library, and wrk's report."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from servebench import http, load, payloads, wrk


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 503 if b"busy" in body else 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class QuickServer(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@pytest.fixture(scope="module")
def address():
    with QuickServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


BUSY = http.json_request("busy")


def test_blocking_client_counts_right_answers(address):
    tally = load.one_by_one(address, payloads.echo(), payloads.is_echo, 0.1)
    assert tally.due
    assert not tally.failed


def test_other_statuses_and_bodies_are_not_right(address):
    assert set(load.one_by_one(address, BUSY, payloads.is_echo, 0.05).outcome) == {"503"}
    assert set(load.one_by_one(address, payloads.batch(1), payloads.is_echo, 0.05).outcome) == {"wrong"}


def test_open_loop_keeps_its_rate(address):
    tally = load.run(load.open_loop(address, payloads.echo(), payloads.is_echo, rate=100, seconds=0.5))
    assert tally.counts == {"ok": 50}
    assert max(tally.due) - min(tally.due) == pytest.approx(0.49)


def test_closed_loop_goes_on_until_the_time_is_up(address):
    tally = load.run(
        load.closed_loop(address, lambda _: payloads.echo(), payloads.is_echo, clients=4, seconds=0.2)
    )
    assert len(tally.due) > 4
    assert not tally.failed


def test_nobody_there_is_refused():
    with http.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # not listening
        gone = listener.getsockname()
        tally = load.run(load.open_loop(gone, payloads.echo(), payloads.is_echo, rate=100, seconds=0.05))
    assert set(tally.counts) == {"refused"}


def test_sizes_of_whole_answers_are_known(address):
    body = json.dumps(payloads.ECHO).encode()
    assert http.ask_size(address, payloads.echo()) > len(body)


def test_wrk_reports_are_read_and_checked():
    values = dict.fromkeys(("status", "connect", "read", "write", "timeout"), 0)
    values |= {"requests": 1000, "duration_us": 2_000_000, "bytes": 150_000, "p50_us": 100, "p99_us": 900}
    found = wrk.parse(f"Running\nREPORT {json.dumps(values)}\n")
    assert found.rate_of_right_ones(150) == 500
    assert found.p99_s == pytest.approx(0.0009)
    with pytest.raises(AssertionError, match="sizes"):
        found.rate_of_right_ones(300)
    failed = wrk.parse(f"REPORT {json.dumps(values | {'status': 3})}\n")
    with pytest.raises(AssertionError, match="3 answers"):
        failed.rate_of_right_ones(150)


def test_a_report_that_is_missing_is_an_error():
    with pytest.raises(ValueError, match="no report"):
        wrk.parse("unable to connect")
