"""Turn a callable into a figure: calls per second, or the median time of one call.

Lives here: warm-up, windows and medians. Does not: what is called, and how figures are shown.
"""

import statistics
import time
from collections.abc import Callable

WINDOWS = 3
CLOCK_READ_EVERY_S = 0.01  # reading the clock after every call would cost the fastest rows a few per cent


class Stopwatch:
    """Measures for `seconds` in all, after a warm-up; a call that takes longer is measured once."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = seconds
        self._clock = clock

    def rate(self, call: Callable[[], object], *, per_call: float = 1) -> float:
        """Return the median over windows of `per_call` times the calls per second."""
        step = self._warm_up(call)
        rates: list[float] = []
        ends = self._clock() + self.seconds
        while len(rates) < WINDOWS and (not rates or self._clock() < ends):
            rates.append(per_call * self._window(call, step))
        return statistics.median(rates)

    def times(self, call: Callable[[], object], *, at_least: int = 3, at_most: int = 1000) -> list[float]:
        """Return the duration of each call, in seconds."""
        durations: list[float] = []
        ends = self._clock() + self.seconds
        while len(durations) < at_least or (len(durations) < at_most and self._clock() < ends):
            started = self._clock()
            call()
            durations.append(self._clock() - started)
        return durations

    def median_time(self, call: Callable[[], object], *, at_least: int = 3, at_most: int = 1000) -> float:
        return statistics.median(self.times(call, at_least=at_least, at_most=at_most))

    def _warm_up(self, call: Callable[[], object]) -> int:
        """Call for a third of the time; return how many calls make one clock reading worth it."""
        started = self._clock()
        count = 0
        while count == 0 or self._clock() - started < self.seconds / 3:
            call()
            count += 1
        per_call_s = (self._clock() - started) / count
        return max(1, int(CLOCK_READ_EVERY_S / max(per_call_s, 1e-9)))

    def _window(self, call: Callable[[], object], step: int) -> float:
        started = self._clock()
        ends = started + self.seconds / WINDOWS
        count = 0
        while True:
            for _ in range(step):
                call()
            count += step
            now = self._clock()
            if now >= ends:
                return count / (now - started)
