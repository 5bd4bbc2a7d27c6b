"""Put the metrics of several processes together, and write them in Prometheus' text form. Pure.

Counters and histograms of equal name and tags add up, of gauges the last one stays. Processes stay apart by
their labels; whoever wants the cluster's sum gives them equal ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Sample = dict[str, Any]
"""name, kind, description, tags, and `value`, or (of a histogram) boundaries, counts, sum.

`counts` has one entry more than `boundaries` and is not cumulative.
"""

Labels = Mapping[str, str]

DEFAULT_PREFIX = "retinue_"

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")


def merge(snapshots: Sequence[Sequence[Sample]], labels: Sequence[Labels] = ()) -> list[Sample]:
    """Return one list of samples with the labels of their processes among their tags.

    `labels[i]` belong to `snapshots[i]`; without labels everything is summed. A tag of the application that
    has the name of a process label becomes `exported_<name>`, as in Prometheus itself. Of a name that is a
    counter in one process and a gauge in another, or a histogram of other boundaries, the definition that
    comes first stays, and samples of the other are left out: they cannot be added.
    """
    labels = labels or [{}] * len(snapshots)
    kinds: dict[str, str] = {}
    merged: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    for samples, process_labels in zip(snapshots, labels, strict=True):
        for sample in samples:
            if kinds.setdefault(sample["name"], sample["kind"]) != sample["kind"]:
                continue
            tags = _labelled(sample["tags"], process_labels)
            key = (sample["name"], tuple(sorted(tags.items())))
            merged[key] = _added(merged.get(key), {**sample, "tags": tags})
    return list(merged.values())


def render_prometheus(
    snapshots: Sequence[Sequence[Sample]], labels: Sequence[Labels] = (), *, prefix: str = DEFAULT_PREFIX
) -> str:
    """Return the text exposition of the merged snapshots, each metric once, with its help and type.

    Names get `prefix`, counters the suffix `_total`. Serve it as `text/plain; version=0.0.4`.
    """
    families: dict[str, list[Sample]] = {}
    for sample in merge(snapshots, labels):
        families.setdefault(_exported_name(sample, prefix), []).append(sample)
    lines: list[str] = []
    for name, samples in families.items():
        description = next((s["description"] for s in samples if s["description"]), "")
        lines.append(f"# HELP {name} {_escaped(description)}")
        lines.append(f"# TYPE {name} {samples[0]['kind']}")
        for sample in samples:
            lines.extend(_lines(name, sample))
    return "".join(line + "\n" for line in lines)


def _labelled(tags: Labels, process_labels: Labels) -> dict[str, str]:
    own = {f"exported_{key}" if key in process_labels else key: value for key, value in tags.items()}
    return {**own, **process_labels}


def _added(total: Sample | None, sample: Sample) -> Sample:
    if total is None or sample["kind"] == "gauge":
        return sample
    if sample["kind"] == "counter":
        return {**total, "value": total["value"] + sample["value"]}
    if total["boundaries"] != sample["boundaries"]:
        return total
    counts = [a + b for a, b in zip(total["counts"], sample["counts"], strict=True)]
    return {**total, "counts": counts, "sum": total["sum"] + sample["sum"]}


def _exported_name(sample: Sample, prefix: str) -> str:
    name: str = prefix + sample["name"]
    return name + "_total" if sample["kind"] == "counter" and not name.endswith("_total") else name


def _lines(name: str, sample: Sample) -> Iterator[str]:
    tags = sample["tags"]
    if sample["kind"] != "histogram":
        yield f"{name}{_label_text(tags.items())} {_number(sample['value'])}"
        return
    cumulative = 0
    for boundary, count in zip([*sample["boundaries"], math.inf], sample["counts"], strict=True):
        cumulative += count
        yield f"{name}_bucket{_label_text([*tags.items(), ('le', _number(boundary))])} {cumulative}"
    yield f"{name}_sum{_label_text(tags.items())} {_number(sample['sum'])}"
    yield f"{name}_count{_label_text(tags.items())} {cumulative}"


def _label_text(tags: Iterable[tuple[str, str]]) -> str:
    pairs = [f'{_label_name(key)}="{_escaped(value, quotes=True)}"' for key, value in tags]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _label_name(key: str) -> str:
    name = _NOT_IN_NAMES.sub("_", key)
    return name if name and not name[0].isdigit() else "_" + name


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
