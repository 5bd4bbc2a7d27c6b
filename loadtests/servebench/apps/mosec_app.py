"""mosec: its server process in Rust, one worker process."""

import sys

from common import BATCH_SIZE, BATCH_WAIT_S, CHUNKS, PATH, double, embedder, event
from mosec import Server, SSEWorker, Worker


class Echo(Worker):
    def forward(self, data):
        return data


class Raw(Worker):
    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        return str(len(data)).encode()


class Stream(SSEWorker):
    """Its streams are fixed in number of events, and come one after the other."""

    def forward(self, data):
        for number in range(CHUNKS):
            self.send_stream_event(event(number)[len("data: ") : -2])
        return data


class Batch(Worker):
    def forward(self, data):
        return [{"n": number} for number in double([item["n"] for item in data])]


class Embed(Worker):
    def __init__(self) -> None:
        self.model = embedder()

    def forward(self, data):
        return [{"vector": vector} for vector in self.model.embed([item["text"] for item in data])]


WORKS = {"echo": Echo, "raw": Raw, "stream": Stream, "batch": Batch, "embed": Embed}


def main(work: str, port: int) -> None:
    server = Server()
    batched = work in ("batch", "embed")
    server.append_worker(
        WORKS[work],
        max_batch_size=BATCH_SIZE if batched else 1,
        max_wait_time=int(BATCH_WAIT_S * 1e3) if batched else 0,
        route=PATH,
    )
    server.run()


if __name__ == "__main__":
    work, port = sys.argv[1], sys.argv[2]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--log-level", "error", "--timeout", "30000"]
    main(work, int(port))
