"""Several processes that call each other with references, over connections that keep only their own order.

The processes do what `client.ownership` does around their tables. Whoever holds a reference to an object of a
living owner finds it there at every step; when all let go, every table is empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from retinue.core.client.tasks import TaskRecord
from retinue.core.ownership.table import INLINE, PENDING, SHARD_BYTE, OwnershipTable
from retinue.core.wire.messages import Address

Refs = list[tuple[bytes, Address]]
Message = Callable[[], None]


@dataclass(eq=False)
class Running:
    """A call that runs somewhere, with the references that its arguments brought."""

    caller: Process
    task: TaskRecord
    at: Process
    refs: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)  # borrowed without being counted
    loading: int = 0

    def __repr__(self) -> str:
        return f"call {self.task.task_id!r} of {self.caller} at {self.at}"


@dataclass(eq=False)
class Process:
    name: str
    address: Address
    table: OwnershipTable = field(default_factory=OwnershipTable)
    held: list[bytes] = field(default_factory=list)  # one per reference that user code keeps
    running: list[Running] = field(default_factory=list)
    calls: int = 0  # made and unanswered
    busy: int = 0  # answers that it waits for
    is_alive: bool = True

    def __repr__(self) -> str:
        return self.name


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.by_address: dict[Address, Process] = {}
        self.channels: dict[tuple[str, Process, Process], deque[Message]] = {}
        self.lost_answers: dict[int, Message] = {}
        self.blobs: dict[bytes, Refs] = {}  # what is inside each object
        self.owners: dict[bytes, Process] = {}
        self.count = 0
        self.loads = 0

    @initialize(number=st.integers(2, 4))
    def start(self, number: int) -> None:
        for i in range(number):
            address = Address(bytes([i]) * 16, b"n" * 16, str(i))
            process = Process(f"P{i}", address)
            self.processes.append(process)
            self.by_address[address] = process

    # --- connections

    def send(self, kind: str, source: Process, target: Process, message: Message) -> None:
        if source.is_alive and target.is_alive:
            self.channels.setdefault((kind, source, target), deque()).append(message)

    def request(self, source: Process, target: Process, handle: Message, then: Message) -> None:
        """`handle` runs at the target, then `then` at the source; also if the target is dead."""
        if not target.is_alive:
            then()
            return
        source.busy += 1

        def answered() -> None:
            source.busy -= 1
            then()

        def arrived() -> None:
            handle()
            self.send("response", target, source, answered)

        self.send("request", source, target, arrived)

    def deliver(self, key: tuple[str, Process, Process]) -> None:
        channel = self.channels[key]
        channel.popleft()()
        if not channel:
            del self.channels[key]

    # --- what a process does (compare client/ownership.py)

    def effects(self, process: Process) -> None:
        effects = process.table.take_effects()
        if effects is None:
            return
        for owner, object_id, count in effects.uncount:
            target = self.by_address[owner]

            def removed(object_id: bytes = object_id, count: int = count, target: Process = target) -> None:
                target.table.remove_borrower(object_id, process.address.worker_id, count)
                self.effects(target)

            self.send("request", process, target, removed)

    def owner_of(self, process: Process, object_id: bytes) -> Address | None:
        owner = self.owners[object_id]
        return None if owner is process else owner.address

    def unpickle(self, process: Process, refs: Refs) -> tuple[list[bytes], list[bytes]]:
        """References appear; returns them, and those whose owners have not counted this process.

        One by one, or listed by their owners ahead of the value, as where they are many.
        """
        new = []
        self.loads += 1
        if self.loads % 2:
            for object_id, address in refs:
                owner = None if address == process.address else address
                entry = process.table.add_ref(object_id, owner)
                if owner is not None and not entry.counted:
                    new.append(object_id)
        else:
            for address in dict.fromkeys(address for _, address in refs):
                owner = None if address == process.address else address
                ids = [object_id for object_id, of in refs if of == address]
                more = process.table.add_refs(ids, owner)
                new += more if owner is not None else []
        return [object_id for object_id, _ in refs], new

    def register(self, process: Process, object_ids: list[bytes], then: Message) -> None:
        entries = process.table.entries
        ids = [i for i in set(object_ids) if (e := entries.get(i)) is not None and e.owner and not e.counted]
        if not ids:
            then()
            return
        left = [len(ids)]
        for object_id in ids:
            owner = self.owners[object_id]

            def counted(object_id: bytes = object_id, owner: Process = owner) -> None:
                process.table.counted(object_id, owner.address)
                self.effects(process)
                left[0] -= 1
                if not left[0]:
                    then()

            def count(object_id: bytes = object_id, owner: Process = owner) -> None:
                self.add_borrower(owner, object_id, process)

            self.request(process, owner, count, counted)

    def add_borrower(self, owner: Process, object_id: bytes, borrower: Process) -> None:
        owner.table.add_borrower(object_id, borrower.address.worker_id, 1)
        if not borrower.is_alive:  # the owner cannot connect to it
            owner.table.borrower_gone(borrower.address.worker_id)
            self.effects(owner)

    def hand_over(self, process: Process, found: list[bytes], receiver: Process, then: Message) -> None:
        left = [1]

        def done() -> None:
            left[0] -= 1
            if not left[0]:
                then()

        for object_id in found:
            owner = self.owners[object_id]
            if owner is process:
                self.add_borrower(process, object_id, receiver)
            else:
                left[0] += 1
                self.request(
                    process,
                    owner,
                    lambda owner=owner, object_id=object_id: self.add_borrower(owner, object_id, receiver),
                    done,
                )
        done()

    def take_contained(self, process: Process, refs: Refs) -> list[bytes]:
        for object_id, address in refs:
            if address == process.address:
                process.table.use(object_id)
                process.table.remove_borrower(object_id, process.address.worker_id, 1)
            else:
                process.table.use(object_id, address)
                process.table.counted(object_id, address)
        return [object_id for object_id, _ in refs]

    def addressed(self, object_ids: list[bytes]) -> Refs:
        return [(i, self.owners[i].address) for i in object_ids]

    def new_id(self, owner: Process) -> bytes:
        self.count += 1
        object_id = str(self.count).zfill(SHARD_BYTE + 1).encode().ljust(28, b"-")
        self.owners[object_id] = owner
        return object_id

    # --- choosing

    def living(self) -> list[Process]:
        return [p for p in self.processes if p.is_alive]

    def all_running(self) -> list[Running]:
        return [r for p in self.living() for r in p.running]

    # --- rules

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.living()))
        contained = data.draw(st.lists(st.sampled_from(process.held), max_size=2)) if process.held else []
        object_id = self.new_id(process)
        for inner in contained:
            process.table.use(inner, self.owner_of(process, inner))
        self.blobs[object_id] = self.addressed(contained)
        process.table.own_inline(object_id, b"blob", contained)
        process.held.append(object_id)

    @precondition(lambda self: any(p.held for p in self.living()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from([p for p in self.living() if p.held]))
        process.table.drop_refs([process.held.pop(data.draw(st.integers(0, len(process.held) - 1)))])
        self.effects(process)

    @precondition(lambda self: len(self.living()) > 1)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.living()))
        target = data.draw(st.sampled_from([p for p in self.living() if p is not caller]))
        found = data.draw(st.lists(st.sampled_from(caller.held), max_size=3)) if caller.held else []
        for object_id in found:
            caller.table.use(object_id, self.owner_of(caller, object_id))
        result = self.new_id(caller)
        task = TaskRecord(result[:24], None, deps=tuple(found))
        caller.table.own(result, task)
        caller.held.append(result)
        caller.calls += 1
        running = Running(caller, task, target)
        refs = self.addressed(found)

        def arrived() -> None:
            running.refs, running.new = self.unpickle(target, refs)
            target.running.append(running)

        self.send("call", caller, target, arrived)

    @precondition(lambda self: any(r.refs for r in self.all_running()))
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        """User code stores a reference somewhere for longer than its call."""
        running = data.draw(st.sampled_from([r for r in self.all_running() if r.refs]))
        running.at.held.append(running.refs.pop(data.draw(st.integers(0, len(running.refs) - 1))))

    @precondition(lambda self: any(r.refs or r.at.held for r in self.all_running()))
    @rule(data=st.data())
    def load_in_call(self, data: st.DataObject) -> None:
        """A running call gets an object: the references in it are its own, and settled with its reply."""
        running = data.draw(st.sampled_from([r for r in self.all_running() if r.refs or r.at.held]))
        process = running.at
        object_id = data.draw(st.sampled_from([*running.refs, *process.held]))
        if self.owners[object_id].table.entries[object_id].state == PENDING:
            return  # it could wait for its own result
        running.loading += 1
        process.table.add_ref(object_id, self.owner_of(process, object_id))  # `get` holds it

        def loaded(refs: Refs) -> None:
            running.loading -= 1
            arrived, new = self.unpickle(process, refs)
            running.refs += arrived
            running.new += new
            self.hold_until_counted(process, object_id, new)
            process.table.drop_refs([object_id])
            self.effects(process)

        self.locate(process, object_id, loaded)

    @precondition(lambda self: any(p.held for p in self.living()))
    @rule(data=st.data())
    def load_in_driver(self, data: st.DataObject) -> None:
        """The same outside of any call, e.g. a driver or a thread of its own."""
        process = data.draw(st.sampled_from([p for p in self.living() if p.held]))
        object_id = data.draw(st.sampled_from(process.held))
        entry = process.table.entries[object_id]
        if entry.owner is not None and not entry.counted:
            return  # borrowed by a call that runs: `load_in_call`
        process.table.add_ref(object_id, self.owner_of(process, object_id))
        process.busy += 1

        def loaded(refs: Refs) -> None:
            process.busy -= 1
            arrived, new = self.unpickle(process, refs)
            process.held += arrived
            self.hold_until_counted(process, object_id, new)
            process.table.drop_refs([object_id])
            self.effects(process)

        self.locate(process, object_id, loaded)

    def hold_until_counted(self, process: Process, container: bytes, new: list[bytes]) -> None:
        if not new:
            return
        process.table.use(container)

        def counted() -> None:
            process.table.unuse(container)
            self.effects(process)

        self.register(process, new, counted)

    def locate(self, process: Process, object_id: bytes, then: Callable[[Refs], None]) -> None:
        owner = self.owners[object_id]
        if owner is process:
            self.when_ready(process, object_id, lambda: then(self.blobs[object_id]))
            return
        entry = process.table.entries[object_id]
        process.busy += 1
        answered = [False]

        def answer(refs: Refs) -> None:
            if not answered[0]:
                answered[0] = True
                process.busy -= 1
                then(refs)

        def located() -> None:
            process.table.located(object_id, INLINE, blob=b"blob")
            answer(self.blobs[object_id])

        def arrived() -> None:
            self.when_ready(owner, object_id, lambda: self.send("response", owner, process, located))

        if entry.state == INLINE:
            located()
        elif not owner.is_alive:
            answer([])  # OwnerDiedError
        else:
            self.send("request", process, owner, arrived)

    def when_ready(self, owner: Process, object_id: bytes, then: Message) -> None:
        entry = owner.table.entries.get(object_id)
        assert entry is not None, "an object is asked for that its owner let go of"
        if entry.state != PENDING:
            then()
            return
        if entry.waiters is None:
            entry.waiters = []
        entry.waiters.append(then)

    @precondition(lambda self: any(not r.loading for r in self.all_running()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """A call returns, perhaps with references in its result."""
        running = data.draw(st.sampled_from([r for r in self.all_running() if not r.loading]))
        # Results that hold each other, or themselves, are never let go of: counting finds no cycles.
        made = int(running.task.task_id.rstrip(b"-"))
        choices = [i for i in (*running.refs, *running.at.held) if int(i.rstrip(b"-")) < made]
        found = data.draw(st.lists(st.sampled_from(choices), max_size=2)) if choices else []
        self.end_call(running, found)

    def end_call(self, running: Running, found: list[bytes]) -> None:
        process, caller, task = running.at, running.caller, running.task
        process.running.remove(running)
        process.busy += 1
        result = next(i for i in self.owners if i[:24] == task.task_id)
        self.blobs[result] = refs = self.addressed(found)
        for object_id in found:
            process.table.use(object_id, self.owner_of(process, object_id))
        process.table.drop_refs(running.refs)
        self.effects(process)

        def arrived() -> None:
            caller.calls -= 1
            waiters = caller.table.resolve(
                result, INLINE, blob=b"result", contained=self.take_contained(caller, refs) or None
            )
            caller.table.task_done(task, keep_lineage=False)
            for wake in waiters:
                wake()
            self.effects(caller)

        def settled() -> None:
            process.busy -= 1
            self.send("reply", process, caller, arrived)

        def handed() -> None:
            self.register(process, running.new, settled)
            process.table.unuse_all(found)
            self.effects(process)

        self.hand_over(process, found, caller, handed)

    @precondition(lambda self: bool(self.channels))
    @rule(data=st.data())
    def message_arrives(self, data: st.DataObject) -> None:
        keys = sorted(self.channels, key=repr)
        self.deliver(data.draw(st.sampled_from(keys)))

    @precondition(lambda self: len(self.living()) > 2 and bool(self.may_die()))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A process that nobody waits for dies; its connections' ends arrive behind what it sent."""
        process = data.draw(st.sampled_from(self.may_die()))
        for other in self.living():
            if other is process:
                continue

            def gone(other: Process = other) -> None:
                other.table.borrower_gone(process.address.worker_id)
                self.effects(other)

            for kind in ("request", "response"):
                self.send(kind, process, other, gone)
        process.is_alive = False
        for key in [k for k in self.channels if k[2] is process]:
            del self.channels[key]

    def may_die(self) -> list[Process]:
        """Those whose death breaks no call, and whose objects nobody is about to load."""
        quiet = [p for p in self.living() if not (p.running or p.calls or p.busy)]
        pending = any(p.busy for p in self.living()) or any(k[0] == "call" for k in self.channels)
        return [] if pending or self.all_running() else quiet

    # --- what must hold

    @invariant()
    def nobody_holds_what_its_owner_let_go_of(self) -> None:
        for process in self.living():
            for object_id in process.table.entries:
                owner = self.owners[object_id]
                if owner is not process and owner.is_alive:
                    assert object_id in owner.table.entries, f"{object_id!r} of {owner} is held by {process}"
            for object_id in process.held:
                assert object_id in process.table.entries

    @invariant()
    def tables_are_consistent(self) -> None:
        for process in self.living():
            process.table.check_invariants()

    def teardown(self) -> None:
        while True:
            idle = [r for r in self.all_running() if not r.loading]
            if self.channels:
                self.deliver(min(self.channels, key=repr))
            elif idle:
                self.end_call(idle[0], [])
            else:
                held = [p for p in self.living() if p.held]
                if not held:
                    break
                held[0].table.drop_refs([held[0].held.pop()])
                self.effects(held[0])
            self.nobody_holds_what_its_owner_let_go_of()
        for process in self.living():
            assert not process.table.entries, f"{process} kept {process.table.entries}"


TestProtocol: Any = Protocol.TestCase
TestProtocol.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_container_is_held_until_what_was_in_it_is_counted():
    # P2 loads a list of P1's that holds a reference of P0's, and drops the list at once: P1 lets go of both
    # before P2's count can reach P0, unless P2 holds the list until then.
    world = Protocol()
    world.start(number=3)
    owner, holder, reader = world.processes
    inner = world.new_id(owner)
    owner.table.own_inline(inner, b"blob")
    owner.table.add_borrower(inner, holder.address.worker_id, 1)
    holder.table.add_ref(inner, owner.address)
    holder.table.counted(inner, owner.address)
    owner.table.drop_refs([inner])
    outer = world.new_id(holder)
    holder.table.use(inner)
    holder.table.own_inline(outer, b"blob", [inner])
    holder.table.drop_refs([inner])
    world.blobs[outer] = world.addressed([inner])
    holder.table.add_borrower(outer, reader.address.worker_id, 1)
    reader.table.add_ref(outer, holder.address)
    reader.table.counted(outer, holder.address)
    holder.table.drop_refs([outer])

    _, new = world.unpickle(reader, world.blobs[outer])
    world.hold_until_counted(reader, outer, new)
    reader.table.drop_refs([outer])
    world.effects(reader)
    count_for_inner = [k for k in world.channels if k[2] is owner]
    while any(k not in count_for_inner for k in world.channels):  # everything else is faster
        world.deliver(next(k for k in world.channels if k not in count_for_inner))
        world.nobody_holds_what_its_owner_let_go_of()
    while world.channels:
        world.deliver(next(iter(world.channels)))
        world.nobody_holds_what_its_owner_let_go_of()
    assert outer not in holder.table.entries
    assert inner in owner.table.entries
    reader.table.drop_refs([inner])
    world.effects(reader)
    world.teardown()
    assert not owner.table.entries
