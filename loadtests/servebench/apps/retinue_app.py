"""Retinue with its defaults, access log and metrics among them."""

import signal
import sys

from serve_apps import WORKS

import retinue
from retinue import serve


def main(work: str, port: int) -> None:
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    retinue.init()
    serve.start(http_options={"port": port})
    serve.run(WORKS[work]())
    signal.sigwait(signals)
    serve.shutdown()
    retinue.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
