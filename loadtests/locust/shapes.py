"""The load of every locust file here: closed or open, steady, ramp or spike; chosen by variables.

    LOAD=closed   each user asks again when its answer is there (default)
    LOAD=open     each user asks RATE times a second, whether or not answers are slow
    SHAPE=steady  the numbers of the command line (default)
    SHAPE=ramp    from 1 to PEAK users over DURATION seconds
    SHAPE=spike   PEAK / 10 users, PEAK for the middle fifth of DURATION, PEAK / 10 again

A shape decides about the users, so `--users` and `--spawn-rate` count with SHAPE=steady only.
"""

import math
import os

from locust import FastHttpUser, LoadTestShape, constant, constant_throughput

OPEN = os.environ.get("LOAD", "closed") == "open"
RATE = float(os.environ.get("RATE", "1"))
SHAPE = os.environ.get("SHAPE", "steady")
PEAK = int(os.environ.get("PEAK", "50"))
DURATION = float(os.environ.get("DURATION", "60"))


class Asker(FastHttpUser):
    """A user whose pace follows LOAD. Files here derive theirs from it."""

    abstract = True
    host = os.environ.get("HOST", "http://127.0.0.1:8000")
    wait_time = constant_throughput(RATE) if OPEN else constant(0)

    def check(self, answer, is_right) -> None:
        """Count an answer as failed if `is_right` of its JSON is not true."""
        try:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif not is_right(answer.json()):
                answer.failure("wrong answer")
        except (ValueError, KeyError, TypeError) as error:
            answer.failure(f"unreadable answer: {error}")


def users_at(shape: str, second: float, peak: int, duration: float) -> int | None:
    """How many users there are at that second; None when the load is over."""
    if second >= duration:
        return None
    if shape == "ramp":
        return max(1, math.ceil(peak * second / duration))
    calm = max(1, peak // 10)
    return peak if 0.4 <= second / duration < 0.6 else calm


if SHAPE in ("ramp", "spike"):

    class Shape(LoadTestShape):
        def tick(self):
            users = users_at(SHAPE, self.get_run_time(), PEAK, DURATION)
            return None if users is None else (users, max(1, PEAK))

elif SHAPE != "steady":
    raise ValueError(f"SHAPE is steady, ramp or spike, not {SHAPE!r}")
