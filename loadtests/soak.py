"""Twenty minutes at half load: does the memory of any process grow?

    python loadtests/soak.py                20 minutes
    python loadtests/soak.py --minutes 3    a shorter look, compared with its first quarter

The private memory of every process at the end must lie within 5 % of what it was after a quarter of the
time: minute 5. Exit status 1 if it does not, or if an answer was wrong.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

from servebench import load, payloads, processes, wrk
from servebench.peers import PEERS, Folder
from servebench.processes import Server, private_bytes
from servebench.ready import served
from servebench.stats import growth

ALLOWED = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s; 0: half of what wrk reaches")
    options = parser.parse_args()
    processes.end_in_order_when_told()
    seconds = options.minutes * 60
    with Folder() as folder, served(PEERS["retinue"], "echo", folder) as server:
        rate = options.rate or _half_rate(server, folder)
        print(f"{rate:,.0f} requests/s for {options.minutes:g} minutes", flush=True)
        sizes = _Sizes(server, seconds)
        with sizes:
            tally = load.run(_constant(server, rate, seconds))
        failed = sum(tally.values())
        grown = growth(sizes.early, sizes.late)
        for pid, size in sizes.early.items():
            late = sizes.late.get(pid)
            print(
                f"pid {pid}: {size / 1e6:.1f} MB, at the end {late / 1e6:.1f}" if late else f"pid {pid} ended"
            )
    print(f"largest growth {grown:.1%} (at most {ALLOWED:.0%}); wrong answers: {failed}")
    return int(grown > ALLOWED or failed > 0)


class _Sizes:
    """Reads private memory at a quarter of the time, and at its end, in a thread."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.early: dict[int, int] = {}
        self.late: dict[int, int] = {}
        self._server = server
        self._early_after = seconds / 4
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sizes")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.late = self._read()
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if not self._ended.wait(self._early_after):
            self.early = self._read()

    def _read(self) -> dict[int, int]:
        return {process.pid: private_bytes(process) for process in self._server.processes()}


async def _constant(server: Server, rate: float, seconds: float) -> dict[str, int]:
    """In slices, so that this process's own lists stay short; returns counts of what was not right."""
    wrong: dict[str, int] = {}
    check = payloads.remembering(payloads.is_echo)
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        tally = await load.open_loop(
            server.address, payloads.echo(), check, rate=rate, seconds=min(left, 10.0)
        )
        for outcome, count in tally.counts.items():
            if outcome != "ok":
                wrong[outcome] = wrong.get(outcome, 0) + count
    return wrong


def _half_rate(server: Server, folder: Path) -> float:
    url = f"http://127.0.0.1:{server.port}/work"
    report = wrk.run(url, payloads.ECHO_LUA, connections=64, seconds=5, folder=folder)
    return report.requests / report.seconds / 2


if __name__ == "__main__":
    sys.exit(main())
