"""Watches: what readers get, on threads and on loops; what keys and nodes make of what the head says."""

import asyncio
import gc
import threading

import pytest

from retinue.core.doors.kv import KnownKeys, KvEvent
from retinue.core.doors.nodes import NodeBook
from retinue.core.doors.watching import Mailbox, Watch
from retinue.core.wire.messages import Address, NodeInfo

TIMEOUT_S = 10.0


def watch() -> tuple[Mailbox[str], Watch[str], list[str]]:
    mailbox: Mailbox[str] = Mailbox()
    left: list[str] = []
    return mailbox, Watch(mailbox, lambda: left.append("left")), left


def test_unread_events_of_one_key_are_replaced_by_the_latest() -> None:
    mailbox, watched, _ = watch()
    for event in ("a1", "b1", "a2"):
        mailbox.put(event[0], event)
    assert [watched.next(0), watched.next(0)] == ["b1", "a2"]
    with pytest.raises(TimeoutError):
        watched.next(0)


def test_a_thread_that_waits_gets_events_from_another_and_the_end() -> None:
    mailbox, watched, _ = watch()
    found: list[str] = []
    seen = threading.Semaphore(0)

    def read() -> None:
        for event in watched:
            found.append(event)
            seen.release()

    reader = threading.Thread(target=read)
    reader.start()
    for event in ("a", "b"):
        mailbox.put(event, event)
        assert seen.acquire(timeout=TIMEOUT_S)
    watched.close()
    reader.join(TIMEOUT_S)
    assert not reader.is_alive()
    assert found == ["a", "b"]


def test_a_loop_that_waits_gets_events_from_another_thread_and_the_end() -> None:
    mailbox, watched, left = watch()

    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S), watched:
            for event in ("a", "b"):
                reading = asyncio.ensure_future(anext(watched))
                await asyncio.sleep(0)
                await asyncio.to_thread(mailbox.put, event, event)
                assert await reading == event
        assert [event async for event in watched] == []

    asyncio.run(main())
    assert left == ["left"]


def test_each_event_is_given_to_a_callback_on_a_thread_of_its_own() -> None:
    mailbox, watched, _ = watch()
    found: list[str] = []
    seen = threading.Semaphore(0)

    def callback(event: str) -> None:
        found.append(event)
        seen.release()
        if event == "bad":
            raise ValueError(event)

    watched.each(callback)
    for event in ("a", "bad", "b"):
        mailbox.put(event, event)
        assert seen.acquire(timeout=TIMEOUT_S)
    thread = watched._thread
    watched.close()
    assert thread is not None
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert found == ["a", "bad", "b"]


def test_a_watch_that_is_dropped_is_left() -> None:
    _, watched, left = watch()
    del watched
    gc.collect()
    assert left == ["left"]


def test_what_a_new_head_does_not_have_is_deleted() -> None:
    keys = KnownKeys()
    keys.state_begins()
    for key in (b"a", b"b", b"c"):
        assert keys.changed(key, b"1") == KvEvent(key, b"1")
    assert keys.state_is_complete() == []
    assert keys.changed(b"a", None) == KvEvent(b"a", None)
    keys.state_begins()
    keys.changed(b"c", b"1")
    assert keys.state_is_complete() == [KvEvent(b"b", None)]
    keys.state_begins()
    assert keys.state_is_complete() == [KvEvent(b"c", None)]


def node(name: str, **more: bool) -> NodeInfo:
    node_id = name.encode().ljust(16)
    return NodeInfo(node_id, Address(node_id, node_id, ""), {}, {}, hostname=name, **more)


def kinds(book: NodeBook, *nodes: NodeInfo, is_full: bool = False, awaits_nodes: bool = False) -> list[str]:
    events = book.see(nodes, is_full=is_full, awaits_nodes=awaits_nodes)
    return [f"{event.node.hostname} {event.kind}" for event in events]


def test_nodes_join_drain_and_leave() -> None:
    book = NodeBook()
    assert kinds(book, node("a"), node("old", alive=False), is_full=True) == ["a joined"]
    assert kinds(book, node("a")) == []
    assert kinds(book, node("b", draining=True)) == ["b joined", "b draining"]
    assert kinds(book, node("a", draining=True)) == ["a draining"]
    assert kinds(book, node("a", draining=True)) == []
    told = [f"{event.node.hostname} {event.kind}" for event in book.all()]
    assert told == ["a joined", "a draining", "b joined", "b draining"]
    assert kinds(book, node("a", alive=False)) == ["a left"]
    assert kinds(book, node("a", alive=False)) == []
    assert kinds(book, node("a")) == ["a joined"]


def test_nodes_that_a_new_head_awaits_have_not_left() -> None:
    book = NodeBook()
    kinds(book, node("a"), node("b"), node("c"), is_full=True)
    assert kinds(book, is_full=True, awaits_nodes=True) == []
    assert kinds(book, node("a"), awaits_nodes=True) == []
    assert kinds(book, node("c", alive=False), awaits_nodes=True) == ["c left"]
    assert kinds(book, node("a"), is_full=True) == ["b left"]
