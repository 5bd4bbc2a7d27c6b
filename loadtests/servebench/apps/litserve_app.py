"""LitServe: one API server process, one worker process. Its `fast_queue` has no effect in 0.2.19."""

import asyncio
import sys

import litserve as ls
from common import BATCH_SIZE, BATCH_WAIT_S, PATH, double, embedder, event, timed_event


class Echo(ls.LitAPI):
    def setup(self, device):
        pass

    def predict(self, data):
        return data


class Stream(Echo):
    async def decode_request(self, request):
        return request

    async def predict(self, data):
        for number in range(data["chunks"]):
            if data["pause_ms"]:
                await asyncio.sleep(data["pause_ms"] / 1e3 if number else 0)
                yield timed_event(number)
            else:
                yield event(number)

    async def encode_response(self, output):
        async for item in output:
            yield item


class Batch(Echo):
    def decode_request(self, request):
        return request["n"]

    def predict(self, data):
        return double(data)

    def encode_response(self, output):
        return {"n": int(output)}


class Embed(Echo):
    def setup(self, device):
        self.model = embedder()

    def decode_request(self, request):
        return request["text"]

    def batch(self, inputs):
        return inputs

    def predict(self, data):
        return self.model.embed(data)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"vector": output}


Batch.batch = Embed.batch
Batch.unbatch = Embed.unbatch

WORKS = {"echo": Echo, "stream": Stream, "batch": Batch, "embed": Embed}


def main(work: str, port: int) -> None:
    batched = work in ("batch", "embed")
    api = WORKS[work](
        api_path=PATH,
        stream=work == "stream",
        enable_async=work == "stream",
        max_batch_size=BATCH_SIZE if batched else 1,
        batch_timeout=BATCH_WAIT_S if batched else 0.0,
    )
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False,
        access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
