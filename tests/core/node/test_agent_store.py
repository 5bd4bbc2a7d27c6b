"""An agent's store with real clients, and objects that cross from one node to another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retinue.core.errors import ObjectLostError, ObjectStoreFullError
from retinue.core.wire.messages import (
    Address,
    CreateObject,
    FreeObjects,
    ListNodes,
    Pinned,
    PinObject,
    Sealed,
    SpaceGranted,
    Unpin,
)
from tests.core.node.conftest import DriverClient, Nodes, wait_until

MIB = 1 << 20


def object_id() -> bytes:
    return os.urandom(28)


def put(driver: DriverClient, data: bytes) -> bytes:
    """Write one object into the node's store."""
    name = object_id()
    granted, _ = driver.client.request(CreateObject(0, name, len(data)))
    assert isinstance(granted, SpaceGranted)
    if granted.path:
        with open(granted.path, "r+b") as file:
            file.write(data)
    else:
        with driver.arena() as arena:
            arena.map_writable(granted.key, len(data))[:] = data
            arena.unmap_writable(granted.key, len(data))
    driver.client.send(Sealed([(name, granted.key, len(data), 0)]))
    return name


def pin(driver: DriverClient, name: bytes, size: int, nodes: list[bytes] | None = None) -> Pinned:
    owner = Address(b"o" * 16, driver.node_id, "/no/such/owner")
    pinned, _ = driver.client.request(PinObject(0, name, size, owner, nodes or [driver.node_id]))
    assert isinstance(pinned, Pinned)
    return pinned


def read(driver: DriverClient, pinned: Pinned) -> bytes:
    if pinned.path:
        with open(pinned.path, "rb") as file:
            file.seek(pinned.offset)
            return file.read(pinned.size)
    with driver.arena() as arena:
        return bytes(arena.view(pinned.offset, pinned.size))


def test_what_is_sealed_is_read_by_another_process_until_it_is_freed(nodes: Nodes) -> None:
    nodes.add()
    writer, reader = nodes.driver(), nodes.driver()
    data = os.urandom(3 * MIB)
    name = put(writer, data)
    pinned = pin(reader, name, len(data))
    assert read(reader, pinned) == data
    reader.client.send(Unpin([(pinned.key, 1)]))
    writer.client.send(FreeObjects([name]))
    wait_until(lambda: reader.ask("node")["store"]["objects"] == 0)
    with pytest.raises(ObjectLostError):
        pin(reader, name, len(data))


def test_ten_times_the_store_is_spilled_and_comes_back(nodes: Nodes) -> None:
    nodes.add(object_store_memory=16 * MIB)
    driver = nodes.driver()
    blocks = {put(driver, bytes([i]) * (5 * MIB)): i for i in range(32)}
    for name, i in blocks.items():
        pinned = pin(driver, name, 5 * MIB)
        assert read(driver, pinned) == bytes([i]) * (5 * MIB)
        driver.client.send(Unpin([(pinned.key, 1)]))
    assert driver.ask("node")["store"]["spilled_objects"] > 20


def test_the_pins_and_unwritten_space_of_a_dead_client_are_free(nodes: Nodes) -> None:
    nodes.add()
    client, other = nodes.driver(), nodes.driver()
    name = put(client, b"x" * MIB)
    pin(client, name, MIB)
    client.client.request(CreateObject(0, object_id(), 8 * MIB))
    client.close()
    wait_until(lambda: other.ask("node")["store"]["pinned_bytes"] == 0)
    other.client.send(FreeObjects([name]))
    wait_until(lambda: other.ask("node")["store"]["used_bytes"] == 0)


def test_a_seal_that_is_read_after_the_readers_request_is_waited_for(nodes: Nodes) -> None:
    nodes.add()
    writer, reader = nodes.driver(), nodes.driver()
    name = object_id()
    granted, _ = writer.client.request(CreateObject(0, name, MIB))
    request = PinObject(77, name, MIB, Address(b"o" * 16, reader.node_id, "/none"), [reader.node_id])
    reader.client.send(request)
    assert reader.ask("node")["store"]["objects"] == 0
    writer.client.send(Sealed([(name, granted.key, MIB, 0)]))
    pinned, _ = reader.client.receive()
    assert isinstance(pinned, Pinned)


def test_an_object_larger_than_disk_and_store_is_refused_with_the_reason(driver: DriverClient) -> None:
    with pytest.raises(ObjectStoreFullError, match="no room for"):
        driver.client.request(CreateObject(0, object_id(), 1 << 50))


def test_a_client_that_contradicts_the_books_is_ended_and_no_other(nodes: Nodes) -> None:
    nodes.add()
    liar, other = nodes.driver(), nodes.driver()
    data = os.urandom(MIB)
    name = put(other, data)
    liar.client.send(Unpin([(12345, 1)]))
    with pytest.raises(ConnectionError):
        liar.client.receive()
    assert read(other, pin(other, name, MIB)) == data
    workers = {worker["worker_id"] for worker in other.ask("workers") if worker["is_alive"]}
    assert liar.address.worker_id.hex() not in workers


def test_a_store_full_of_pins_goes_on_in_files(nodes: Nodes) -> None:
    nodes.add(object_store_memory=16 * MIB)
    driver = nodes.driver()
    pins = []
    for i in range(6):  # twice what the store can hold
        name = put(driver, bytes([i]) * (5 * MIB))
        pins.append(pin(driver, name, 5 * MIB))
    assert [read(driver, pinned)[:1] for pinned in pins] == [bytes([i]) for i in range(6)]
    assert sum(bool(pinned.path) for pinned in pins) == 3


def test_a_put_is_refused_only_when_the_disk_is_full_too(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(object_store_memory=16 * MIB, spill_dir=str(tmp_path), system_config={"disk_reserve": "1"})
    driver = nodes.driver()
    names = [put(driver, bytes([i]) * (5 * MIB)) for i in range(3)]
    pins = [pin(driver, name, 5 * MIB) for name in names]
    with pytest.raises(ObjectStoreFullError, match=r"15 MiB.*driver") as failure:
        put(driver, b"x" * (5 * MIB))
    assert str(os.getpid()) in str(failure.value)
    driver.client.send(Unpin([(pins[0].key, 1)]))
    driver.client.send(FreeObjects([names[0]]))
    assert read(driver, pin(driver, put(driver, b"y" * (5 * MIB)), 5 * MIB)) == b"y" * (5 * MIB)


def _alive(nodes: Nodes) -> int:
    with nodes.head_client() as head:
        return sum(node.alive for node in head.request(ListNodes(0))[0].nodes)


def two_nodes(nodes: Nodes) -> tuple[DriverClient, DriverClient]:
    first, second = nodes.add(), nodes.add()
    wait_until(lambda: _alive(nodes) == 2)
    return nodes.driver(first), nodes.driver(second)


def test_an_object_is_pulled_from_another_node_and_freed_on_both(nodes: Nodes) -> None:
    here, there = two_nodes(nodes)
    data = os.urandom(20 * MIB + 12345)
    name = put(there, data)
    pinned = pin(here, name, len(data), [there.node_id])
    assert read(here, pinned) == data
    here.client.send(Unpin([(pinned.key, 1)]))
    assert here.ask("node")["store"]["received_objects"] == 1
    here.client.send(FreeObjects([name], [there.node_id]))
    wait_until(lambda: there.ask("node")["store"]["objects"] == 0)
    wait_until(lambda: here.ask("node")["store"]["used_bytes"] == 0)
    wait_until(lambda: there.ask("node")["store"]["used_bytes"] == 0)


def test_a_spilled_object_is_pulled_too(nodes: Nodes) -> None:
    here, there = two_nodes(nodes)
    names = [put(there, bytes([i]) * (20 * MIB)) for i in range(5)]
    pinned = pin(here, names[0], 20 * MIB, [there.node_id])
    assert read(here, pinned) == b"\0" * (20 * MIB)


def test_an_object_that_no_node_has_is_lost(nodes: Nodes) -> None:
    here, there = two_nodes(nodes)
    with pytest.raises(ObjectLostError):
        pin(here, object_id(), MIB, [there.node_id])


def test_an_object_on_a_node_that_died_is_lost(nodes: Nodes) -> None:
    here, there = two_nodes(nodes)
    name = put(there, b"x" * MIB)
    nodes.cluster.agents[1].kill()
    with pytest.raises(ObjectLostError):
        pin(here, name, MIB, [there.node_id])
