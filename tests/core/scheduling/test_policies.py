from __future__ import annotations

import random

from retinue.core.scheduling.policies import Choice, Fits, Infeasible, NodeView, Wait, choose_node
from retinue.core.scheduling.resources import to_units


def node(name: str, total: dict[str, float], free: dict[str, float] | None = None) -> NodeView:
    return NodeView(name.encode(), to_units(total), to_units(total if free is None else free))


def choose(
    request: dict[str, float],
    nodes: list[NodeView],
    local: str = "a",
    strategy: str = "",
    seed: int = 0,
    **kw: object,
) -> Choice:
    return choose_node(
        to_units(request),
        nodes,
        local_node_id=local.encode(),
        strategy=strategy,
        rng=random.Random(seed),
        **kw,  # type: ignore[arg-type]
    )


def test_work_packs_at_home_until_home_is_half_used() -> None:
    nodes = [node("a", {"CPU": 4}, {"CPU": 3}), node("b", {"CPU": 4})]
    assert choose({"CPU": 1}, nodes) == Fits(b"a")
    nodes[0].take(to_units({"CPU": 1}))
    assert choose({"CPU": 1}, nodes) == Fits(b"b")


def test_it_stays_at_home_when_no_other_node_is_less_used() -> None:
    nodes = [node("a", {"CPU": 4}, {"CPU": 1}), node("b", {"CPU": 4}, {"CPU": 1})]
    assert choose({"CPU": 1}, nodes) == Fits(b"a")


def test_busy_is_wait_and_too_large_is_infeasible_with_what_there_is() -> None:
    nodes = [node("a", {"CPU": 4}, {"CPU": 0}), node("b", {"CPU": 2}, {"CPU": 1})]
    assert choose({"CPU": 2}, nodes) == Wait(b"b")
    answer = choose({"CPU": 8, "x": 1}, nodes)
    assert isinstance(answer, Infeasible)
    assert not answer.is_final
    assert "{CPU: 8, x: 1}" in answer.message
    assert "1 x {CPU: 4}" in answer.message


def test_excluded_dead_and_draining_nodes_get_nothing() -> None:
    nodes = [node("a", {"CPU": 4}), node("b", {"CPU": 4}), node("c", {"CPU": 4})]
    nodes[1].is_draining = True
    nodes[2].is_alive = False
    assert choose({"CPU": 1}, nodes, exclude=[b"a"]) == Wait(b"a")
    assert choose({"CPU": 1}, nodes[1:]) == Infeasible(
        "it needs {CPU: 1}, and no node has that much: there is no node"
    )


def test_spread_goes_round_the_nodes_with_room() -> None:
    nodes = [node("b", {"CPU": 4}, {"CPU": 1}), node("a", {"CPU": 4}), node("c", {"CPU": 4}, {"CPU": 2})]
    turns = [b""]
    for _ in range(4):
        choice = choose({"CPU": 1}, nodes, strategy="SPREAD", after=turns[-1])
        assert isinstance(choice, Fits)
        turns.append(choice.node_id)
    assert turns == [b"", b"a", b"b", b"c", b"a"]
    assert choose({"CPU": 2}, nodes, strategy="SPREAD", after=b"a") == Fits(b"c")
    assert choose({}, nodes, strategy="SPREAD", after=b"b") == Fits(b"c")
    assert choose({"CPU": 4}, nodes, strategy="SPREAD", after=b"a") == Fits(b"a")


def test_spread_keeps_off_nodes_with_gpus_unless_it_wants_one() -> None:
    nodes = [node("a", {"CPU": 4}), node("b", {"CPU": 4, "GPU": 1})]
    assert choose({"CPU": 1}, nodes, strategy="SPREAD", after=b"a") == Fits(b"a")
    assert choose({"CPU": 1, "GPU": 1}, nodes, strategy="SPREAD", after=b"a") == Fits(b"b")


def test_hard_affinity_waits_for_its_node_and_fails_when_it_is_gone() -> None:
    nodes = [node("a", {"CPU": 4}), node("b", {"CPU": 2}, {"CPU": 0})]
    strategy = f"node:{b'b'.hex()}"
    assert choose({"CPU": 1}, nodes, strategy=strategy) == Wait(b"b")
    gone = choose({"CPU": 1}, nodes[:1], strategy=strategy)
    too_small = choose({"CPU": 3}, nodes, strategy=strategy)
    assert isinstance(gone, Infeasible)
    assert gone.is_final
    assert isinstance(too_small, Infeasible)
    assert too_small.is_final


def test_soft_affinity_goes_elsewhere_only_when_its_node_is_gone_or_too_small() -> None:
    nodes = [node("a", {"CPU": 4}), node("b", {"CPU": 2}, {"CPU": 0})]
    strategy = f"node:{b'b'.hex()}:soft"
    assert choose({"CPU": 1}, nodes, strategy=strategy) == Wait(b"b")
    assert choose({"CPU": 3}, nodes, strategy=strategy) == Fits(b"a")
    assert choose({"CPU": 1}, nodes[:1], strategy=strategy) == Fits(b"a")


def test_nodes_with_gpus_are_kept_for_those_who_need_them() -> None:
    nodes = [node("a", {"CPU": 4, "GPU": 1}), node("b", {"CPU": 4})]
    assert choose({"CPU": 1}, nodes) == Fits(b"b")
    assert choose({"CPU": 1, "GPU": 1}, nodes, local="b") == Fits(b"a")


def test_equal_remote_nodes_are_chosen_at_random() -> None:
    nodes = [node("a", {"CPU": 4}, {"CPU": 0}), *(node(name, {"CPU": 4}) for name in "bcdef")]
    assert len({choose({"CPU": 1}, nodes, seed=seed) for seed in range(50)}) == 5


def test_ten_thousand_nodes_are_no_trouble() -> None:
    nodes = [node(f"{i:05}", {"CPU": 64}, {"CPU": i % 64}) for i in range(10_000)]
    for seed in range(10):
        assert isinstance(choose({"CPU": 8}, nodes, local="00000", seed=seed), Fits)
