"""The embedding model without a server: texts per second in batches, on one torch thread."""

import sys
import time
from pathlib import Path

from common import BATCH_SIZE, embedder

sys.path.append(str(Path(__file__).resolve().parents[2]))


def main(seconds: float) -> None:
    from servebench.texts import texts

    model = embedder()
    passages = texts()
    batches = [passages[i : i + BATCH_SIZE] for i in range(0, len(passages), BATCH_SIZE)]
    model.embed(batches[0])
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds:
        for batch in batches:  # all of them: some are longer than others
            count += len(model.embed(batch))
    print(count / (time.perf_counter() - started))


if __name__ == "__main__":
    main(float(sys.argv[1]))
