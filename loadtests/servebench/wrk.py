"""wrk, the load generator of the echo rows: how it is called, and what its report says.

One wrk thread is near its own limit above 30,000 requests/s. It counts answers that are not 2xx; that bodies
are right is checked by their sizes in sum, and by our own client before and after.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MISSING = "wrk is not installed: `apt-get install wrk` on Debian and Ubuntu, `brew install wrk` on a Mac"


@dataclass(frozen=True)
class WrkReport:
    requests: int
    seconds: float
    bytes_read: int
    not_2xx: int
    socket_errors: int
    p50_s: float
    p99_s: float

    def rate_of_right_ones(self, answer_bytes: int) -> float:
        """Answers per second. AssertionError if one was not 2xx, broke, or the sizes do not add up."""
        assert self.not_2xx == 0, f"{self.not_2xx} answers were not 2xx"
        assert self.socket_errors == 0, f"{self.socket_errors} connections failed"
        off = abs(self.bytes_read - self.requests * answer_bytes)
        # Answers under way when the time is up are read in part.
        assert off <= 0.002 * self.bytes_read + 65536, "the sizes of the answers do not add up"
        return self.requests / self.seconds


def run(url: str, body: str | None, *, connections: int, seconds: float, folder: Path) -> WrkReport:
    """Run it with one thread for whole seconds; `body` is a Lua expression. RuntimeError if that fails."""
    program = shutil.which("wrk")
    if program is None:
        raise RuntimeError(MISSING)
    script = folder / "request.lua"
    script.write_text(_script(body))
    command = [
        program,
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}",
        "--timeout",
        "10",
        "-s",
        str(script),
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"wrk ended with status {done.returncode}: {done.stderr or done.stdout}")
    return parse(done.stdout)


def parse(text: str) -> WrkReport:
    """Read the line that our script prints at the end."""
    found = re.search(r"^REPORT (\{.*\})$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk printed no report:\n{text}")
    values = json.loads(found[1])
    return WrkReport(
        requests=values["requests"],
        seconds=values["duration_us"] / 1e6,
        bytes_read=values["bytes"],
        not_2xx=values["status"],
        socket_errors=values["connect"] + values["read"] + values["write"] + values["timeout"],
        p50_s=values["p50_us"] / 1e6,
        p99_s=values["p99_us"] / 1e6,
    )


def _script(body: str | None) -> str:
    lines = []
    if body is not None:
        lines = [
            'wrk.method = "POST"',
            f"wrk.body = {body}",
            'wrk.headers["Content-Type"] = "application/json"',
        ]
    lines.append(_REPORT)
    return "\n".join(lines)


_REPORT = """
function done(summary, latency, requests)
  io.write(string.format(
    'REPORT {"requests": %d, "duration_us": %d, "bytes": %d, "status": %d, "connect": %d, "read": %d,' ..
    ' "write": %d, "timeout": %d, "p50_us": %.0f, "p99_us": %.0f}\\n',
    summary.requests, summary.duration, summary.bytes, summary.errors.status, summary.errors.connect,
    summary.errors.read, summary.errors.write, summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
