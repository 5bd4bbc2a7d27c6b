"""Why a replica fits nowhere, in words."""

from __future__ import annotations

from retinue.serve.controller.placement import ClusterResources, Holder, explain, fits_a_node, makes_room

FULL = ClusterResources(
    {"n": {"CPU": 2.0, "memory": float(4 << 30), "node:x": 1.0}},
    {"memory": float(4 << 30)},
    [Holder("actor a", {"CPU": 1.0}), Holder("task t", {"CPU": 0.5}), Holder("task t", {"CPU": 0.5})],
)


def test_it_says_what_is_missing_what_there_is_and_who_holds_it() -> None:
    assert explain({"CPU": 1.0}, 1, FULL) == (
        "1 replica waits for a node with room: it needs 1 CPU; free: 0 CPU of 2 CPU; "
        "held by actor a (1 CPU), task t x 2 (1 CPU)"
    )


def test_what_no_node_has_is_said_to_be_so() -> None:
    assert explain({"GPU": 1.0}, 3, FULL) == (
        "3 replicas wait for a node with room: each needs 1 GPU, and no node has that much at all; "
        "the nodes have 0 GPU"
    )
    assert not fits_a_node({"GPU": 1.0}, FULL)


def test_memory_is_told_in_gib() -> None:
    assert "it needs 8 GiB memory, and no node has that much" in explain({"memory": float(8 << 30)}, 1, FULL)


def test_only_the_largest_holders_are_named() -> None:
    holders = [Holder(f"actor {i}", {"CPU": float(i)}) for i in range(1, 9)]
    text = explain({"CPU": 1.0}, 1, ClusterResources({"n": {"CPU": 36.0}}, {}, holders))
    assert text.endswith(
        "held by actor 8 (8 CPU), actor 7 (7 CPU), actor 6 (6 CPU), actor 5 (5 CPU), actor 4 (4 CPU) "
        "and 3 more"
    )


def test_a_cluster_without_nodes() -> None:
    assert explain({"CPU": 1.0}, 1, ClusterResources({}, {})).endswith("the cluster has no node")


def test_stopping_another_makes_room_only_if_that_is_what_is_missing() -> None:
    assert makes_room({"CPU": 1.0}, {"CPU": 1.0}, FULL)
    assert not makes_room({"CPU": 2.0}, {"CPU": 1.0}, FULL)
    assert not makes_room({"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}, FULL)
    assert not makes_room({"CPU": 1.0}, {"memory": 1.0}, FULL)
