"""Ray Serve; what differs between its two ways of running are environment variables (`servebench.peers`)."""

import signal
import sys

import ray
from ray import serve
from serve_apps import WORKS


def main(work: str, port: int) -> None:
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": port})
    serve.run(WORKS[work]())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
