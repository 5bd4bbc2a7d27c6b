"""Ask several models in turn, and print which replica answered, and whether it had to load the model.

python -m examples.many_models.client [--url http://127.0.0.1:8000]
"""

import argparse
from collections.abc import Sequence
from typing import Any

import httpx

# Six have room (two replicas with three each); with the seventh, the model not used for longest has to go.
ASKED = [
    *["iris/forest", "wine/logistic", "digits/neighbours", "moons/forest", "cancer/forest", "wine/forest"]
    * 2,
    "digits/logistic",
    "digits/logistic",
]


def ask(client: httpx.Client, model_id: str) -> dict[str, Any]:
    answer = client.post("/models", headers={"serve_multiplexed_model_id": model_id})
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    url = parser.parse_args(arguments).url
    with httpx.Client(base_url=url, timeout=60) as client:
        count = len(client.get("/models").raise_for_status().json()["models"])
        print(f"{count} models can be asked.\n")
        print("model               replica   ready after        predicts    right")
        for model_id in ASKED:
            found = ask(client, model_id)
            how = "held  " if found["was_held"] else "loaded"
            print(
                f"{model_id:<18}  {found['replica']:<8}  {how} {found['ready_ms']:7.1f} ms  "
                f"{found['predictions'][0]:<10}  {found['accuracy']:.1%}"
            )


if __name__ == "__main__":
    main()
