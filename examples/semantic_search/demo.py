"""`make demo`: run this example with `serve run`, ask it some questions, and say where to look next.

In a terminal it goes on until Enter is pressed.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from examples.semantic_search import client

TARGET = "examples.semantic_search.app:build"
PORT = 8000
BIN = os.path.relpath(os.path.dirname(sys.executable))
END_TIMEOUT_S = 30.0


@contextmanager
def serve_run(*arguments: str) -> Iterator[str]:
    """`serve run` with these arguments; the URL that it tells. Ended in order."""
    command = [sys.executable, "-m", "retinue.serve.cli.main", "run", *arguments]
    # In a session of its own: Ctrl-C in the terminal is for us, who then end it in order.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            print(f"  {line.rstrip()}", flush=True)
            if found := re.search(r"running at (http://\S+)", line):
                url = found[1].rstrip("/")
            if "Ctrl-C" in line:
                break
        if not url:
            raise SystemExit("serve run has ended, see above")
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=END_TIMEOUT_S)  # its last lines are of no interest any more


def port() -> int:
    """The usual one; 0, which is any that is free, if somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            return 0
    return PORT


def main(arguments: Sequence[str] = ()) -> None:
    """The arguments are for the application, such as topics=try,raise."""
    print(f"$ serve run {' '.join([TARGET, *arguments])}", flush=True)
    started = time.perf_counter()
    with serve_run(TARGET, *arguments, "--address", "local", "--http-port", str(port())) as url:
        print(f"  (ready after {time.perf_counter() - started:.1f} s)")
        client.main(["--url", url])
        print(f"""
Where to look next, while it runs:
  {url + "/docs":<33} the API, to try by hand
  {url + "/metrics":<33} counts and latencies, for Prometheus
  {BIN}/serve status{"":<{33 - len(BIN) - 13}} applications, replicas and what they do
  examples/semantic_search/app.py   the whole application
  examples/README.md                more: streaming, images, many models, gRPC
To keep it running:  {BIN}/serve run examples/semantic_search/config.yaml
To put load on it:   {BIN}/locust -f loadtests/locust/semantic_search.py --host {url}""")
        if sys.stdin.isatty() and os.environ.get("CI") is None:
            input("\nPress Enter to end. ")
    print("\nEnded; nothing is left running.")


if __name__ == "__main__":
    main(sys.argv[1:])
