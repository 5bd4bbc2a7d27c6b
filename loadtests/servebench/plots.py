"""Bars of the figures that several peers have, as one SVG each. Needs matplotlib (the `bench` extra)."""

from collections.abc import Sequence
from pathlib import Path

from servebench.catalogue import Row
from servebench.peers import PEERS
from servebench.report import number, outcomes
from servebench.rounds import Results


def write(rows: Sequence[Row], results: Results, folder: Path) -> list[Path]:
    """Write the plots; returns their paths. ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for outcome in outcomes(rows, results):
        names = [name for name in PEERS if name in outcome.medians]
        if len(names) < 2:
            continue
        values = [outcome.medians[name] for name in names]
        picture, axes = plt.subplots(figsize=(7, 0.45 * len(names) + 1.1))
        colors = ["tab:blue" if name == "retinue" else "tab:gray" for name in names]
        bars = axes.barh([PEERS[name].title for name in names], values, color=colors)
        axes.bar_label(bars, [number(value) for value in values], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        better = "less" if outcome.figure.is_less_better else "more"
        axes.set_title(
            f"{outcome.figure.title.strip()} ({outcome.figure.unit}; {better} is better)", fontsize=9
        )
        axes.spines[["top", "right"]].set_visible(False)
        picture.tight_layout()
        path = folder / f"serve-{outcome.figure.name}.svg"
        picture.savefig(path, metadata={"Date": None})
        plt.close(picture)
        written.append(path)
    return written
