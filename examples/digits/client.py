"""Send some digits, print them with what the network takes them for, and how good it is.

python -m examples.digits.client [--count 3] [--url http://127.0.0.1:8000]
"""

import argparse
from collections.abc import Sequence

import httpx
from sklearn.datasets import load_digits

INK = " .:-=+*#%"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=3, help="how many digits to send")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args(arguments)
    digits = load_digits()
    with httpx.Client(base_url=f"{options.url}/digits", timeout=60) as client:
        for image, label in zip(
            digits.images[-options.count :], digits.target[-options.count :], strict=True
        ):
            guess = client.post("/predict", json={"pixels": image.tolist()}).raise_for_status().json()
            for row in image:
                print("  " + "".join(INK[int(value) // 2] * 2 for value in row))
            print(f"a {label}, taken for {guess['digit']} with {guess['confidence']:.1%}\n")
        seen = client.get("/accuracy").raise_for_status().json()
        print(f"Of {seen['images']} images that it was not trained on, {seen['accuracy']:.1%} are right.")


if __name__ == "__main__":
    main()
