"""Load for examples/token_stream: streams of server-sent events, timed to the first and to the last."""

import time

from shapes import *  # noqa: F403  (locust looks for shapes among the names of this file)
from shapes import Asker

from locust import task

PROMPT = {"prompt": "The try statement", "words": 60}


class Listener(Asker):
    @task
    def listen(self):
        started = time.perf_counter()
        with self.client.get(
            "/stream/generate", params=PROMPT, name="/stream/generate", stream=True, catch_response=True
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
                return
            events, last = 0, b""
            for line in answer.iter_lines():
                text = line if isinstance(line, bytes) else line.encode()
                if not text.startswith((b"data:", b"event:")):
                    continue
                if not events:
                    self._report("first event", started)
                events, last = events + 1, text
            if not events:
                answer.failure("no events")
            elif last.startswith(b"event: error"):
                answer.failure("the stream ended with an error")

    def _report(self, name: str, started: float) -> None:
        self.environment.events.request.fire(
            request_type="STREAM",
            name=name,
            response_time=(time.perf_counter() - started) * 1e3,
            response_length=0,
            exception=None,
            context={},
        )
