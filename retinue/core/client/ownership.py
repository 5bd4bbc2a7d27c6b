"""Talking about references with other processes: who borrows what, where objects are, what is lost.

Carries out what `ownership.table` decides. The rule that makes it safe: whoever hands a reference on has
the receiver counted at the owner *before* the message leaves; a receiver that only looks at an argument
during its call needs no count, because the caller holds it until the reply.

Lives here: messages of kind "peer", lineage, streams' items. Does not: the counts themselves.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from retinue.core.errors import ObjectLostError, ObjectReconstructionFailedError, OwnerDiedError
from retinue.core.ids import return_id
from retinue.core.ownership.table import ACTOR, ERROR, INLINE, LOST, PENDING, STORED, Effects, Entry
from retinue.core.serialization import deserialize, serialize_error
from retinue.core.transport.threads import Connection
from retinue.core.wire.failures import to_exception
from retinue.core.wire.messages import (
    AddBorrowers,
    Address,
    CancelCall,
    CancelObject,
    CopyAdded,
    CopyLost,
    Document,
    Failure,
    FreeObjects,
    KeepObjects,
    Locate,
    Located,
    NodeGone,
    Ok,
    Ping,
    Query,
    RefCount,
    RemoveBorrower,
    Reply,
    ReturnInfo,
    StreamCredit,
    StreamItem,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime
    from retinue.core.client.tasks import TaskRecord

logger = logging.getLogger(__name__)

RECOVERY_LINE_S = 0.2


class Scope(threading.local):
    """References that became known to this process while a value was loaded on this thread."""

    ids: list[bytes] | None = None


class OwnershipService:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._table = runtime.table
        self._scope = Scope()
        self._locating: set[bytes] = set()
        self._remade = 0  # objects whose tasks run again, since the last line about it
        self._pulling: dict[bytes, set[bytes]] = {}  # nodes that pull an object of ours now
        self.cancel_hook: Callable[[CancelCall], None] | None = None  # set by a worker's executor
        self.credit_hook: Callable[[StreamCredit], None] | None = None
        # Set by a worker: references that the running call got, which are settled before its reply.
        self.note_borrowed: Callable[[list[bytes]], None] = _note_nothing
        self.queries: dict[str, Callable[[dict[str, str]], Any]] = {}
        handlers = runtime.peers.handlers
        handlers[Locate] = self._on_locate
        handlers[AddBorrowers] = self._on_add_borrowers
        handlers[RemoveBorrower] = self._on_remove_borrower
        handlers[CancelCall] = self._on_cancel
        handlers[CancelObject] = self._on_cancel_object
        handlers[StreamCredit] = self._on_credit
        handlers[CopyLost] = self._on_copy_lost
        handlers[CopyAdded] = self._on_copy_added
        handlers[NodeGone] = self._on_node_gone
        handlers[Ping] = self._on_ping
        handlers[Query] = self.on_query

    # --- loading values

    def load(self, object_id: bytes, entry: Entry, blob: bytes | memoryview) -> Any:
        """A value from its blob. References inside a borrowed one are counted before it can go."""
        if entry.owner is None:
            return deserialize(blob)
        value, new = self.load_in_scope(blob)
        if new:
            self.note_borrowed(new)
            with self._runtime.lock:
                self._table.use(object_id)

            def counted() -> None:
                with self._runtime.lock:
                    self._table.unuse(object_id)
                self._runtime.after_unlock()

            self.register(new, counted)
        return value

    def load_in_scope(self, blob: bytes | memoryview) -> tuple[Any, list[bytes]]:
        """A value, and the borrowed references inside it whose owners have not counted us."""
        outer = self._scope.ids
        new: list[bytes] = []
        self._scope.ids = new
        try:
            return deserialize(blob), new
        finally:
            self._scope.ids = outer

    def borrowed(self, object_ids: list[bytes]) -> None:
        """Foreign references appeared that their owner does not know we hold. With the lock."""
        if self._scope.ids is not None:
            self._scope.ids.extend(object_ids)
        else:
            # Unpickled by the user's own hand: count as soon as possible, and hope their maker holds them.
            self.note_borrowed(object_ids)
            self._runtime.io.post(lambda: self.register(object_ids, _nothing))

    def register(self, object_ids: Sequence[bytes], then: Callable[[], None]) -> None:
        """Have the owners count us for those of the borrowed references that are still held; then go on."""
        by_owner: dict[Address, list[bytes]] = defaultdict(list)
        with self._runtime.lock:
            for object_id in set(object_ids):
                entry = self._table.entries.get(object_id)
                if entry is not None and entry.owner is not None and not entry.counted:
                    by_owner[entry.owner].append(object_id)
        if not by_owner:
            then()
            return
        left = [len(by_owner)]

        def answered(owner: Address, ids: list[bytes]) -> Callable[[Any, bytes], None]:
            def on_response(response: Any, body: bytes) -> None:
                if type(response) is Ok:
                    with self._runtime.lock:
                        for object_id in ids:
                            self._table.counted(object_id, owner)
                    self._runtime.after_unlock()
                left[0] -= 1
                if left[0] == 0:
                    then()

            return on_response

        for owner, ids in by_owner.items():
            message = AddBorrowers(0, [(i, 1) for i in ids], self._runtime.address)
            self._runtime.peers.request(owner, message, answered(owner, ids))

    def uncounted(self, object_ids: Sequence[bytes]) -> list[bytes]:
        """Which of the references that came with a call are still held here, now that it is over."""
        self._runtime.drain_dropped()
        with self._runtime.lock:
            entries = self._table.entries
            return [i for i in object_ids if (e := entries.get(i)) is not None and e.owner and not e.counted]

    # --- handing references on

    def hand_over(
        self,
        found: Sequence[tuple[bytes, Address | None]],
        receiver: Address,
        then: Callable[[list[RefCount]], None],
    ) -> None:
        """Have `receiver` counted for references that a result takes along; `then` gets their names."""
        own = [object_id for object_id, owner in found if owner is None]
        foreign: dict[Address, list[tuple[bytes, int]]] = defaultdict(list)
        for object_id, owner in found:
            if owner is not None:
                foreign[owner].append((object_id, 1))
        refs = [RefCount(object_id, owner or self._runtime.address) for object_id, owner in found]
        if own:
            with self._runtime.lock:
                for object_id in own:
                    self._table.add_borrower(object_id, receiver.worker_id, 1)
            self._watch(receiver)
        if not foreign:
            then(refs)
            return
        left = [len(foreign)]

        def answered(response: Any, body: bytes) -> None:
            left[0] -= 1
            if left[0] == 0:
                then(refs)

        for owner, counts in foreign.items():
            self._runtime.peers.request(owner, AddBorrowers(0, counts, receiver), answered)

    def take_contained(self, refs: Sequence[RefCount]) -> list[bytes] | None:
        """Hold references that came inside a result of ours, counted already. With the lock."""
        if not refs:
            return None
        me = self._runtime.address.worker_id
        for ref in refs:
            if ref.owner.worker_id == me:
                self._table.use(ref.object_id)
                self._table.remove_borrower(ref.object_id, me, ref.count)
            else:
                self._table.use(ref.object_id, ref.owner)
                self._table.counted(ref.object_id, ref.owner, ref.count)
        return [ref.object_id for ref in refs]

    def take_return(self, object_id: bytes, info: ReturnInfo, blob: bytes) -> list[Callable[[], None]]:
        """What a call made is there. With the lock; returns the waiters to wake."""
        contained = self.take_contained(info.contained)
        if info.node_id:
            nodes = (info.node_id,)
            return self._table.resolve(object_id, STORED, size=info.size, nodes=nodes, contained=contained)
        state = ERROR if info.is_error else INLINE
        return self._table.resolve(object_id, state, blob=blob, contained=contained)

    def refuse_return(self, object_id: bytes, info: ReturnInfo) -> None:
        """What a call made is not wanted: it was cancelled, or made it before. With the lock.

        The references inside were counted for us all the same, and its copy lies in a store.
        """
        table = self._table
        table.unuse_all(self.take_contained(info.contained))
        if not info.node_id:
            return
        entry = table.entries.get(object_id)
        if entry is not None and entry.state == PENDING:
            table.copy_added(object_id, info.node_id)  # the attempt that is under way makes the same
        else:
            table.resolve(object_id, STORED, size=info.size, nodes=(info.node_id,))

    def refuse_returns(self, reply: Reply) -> None:
        """A call was answered, and nobody waits for its returns any more. With the lock."""
        for index, info in enumerate(reply.returns or ()):
            self.refuse_return(return_id(reply.task_id, index), info)

    def _watch(self, borrower: Address) -> None:
        """Learn of a borrower's death: by the connection to it."""
        if borrower.worker_id == self._runtime.address.worker_id:
            return

        def connected(connection: Connection | None) -> None:
            if connection is None:
                self._runtime.process_gone(borrower.worker_id)

        self._runtime.peers.connect(borrower, connected)

    # --- effects

    def carry_out(self, effects: Effects) -> None:
        """Do what the table decided when holds ended. Without the lock."""
        runtime = self._runtime
        if effects.free and runtime.agent is not None:
            nodes = {n for _, ns in effects.free for n in ns if n != runtime.node_id}
            if self._pulling:
                nodes.update(*(self._pulling.pop(i, ()) for i, _ in effects.free))
            runtime.agent.send(FreeObjects([i for i, _ in effects.free], list(nodes)))
        by_owner: dict[Address, list[tuple[bytes, int]]] = defaultdict(list)
        for owner, object_id, times in effects.uncount:
            by_owner[owner].append((object_id, times))
        for owner, counts in by_owner.items():
            actors = [c for c in counts if len(c[0]) == 16]
            objects = [c for c in counts if len(c[0]) != 16]
            if objects:
                runtime.peers.send(owner, RemoveBorrower(objects))
            for actor_id, count in actors:
                # Calls that are under way finish first: the handle counts until they are answered.
                removed = RemoveBorrower([(actor_id, count)])
                runtime.actors.when_idle(actor_id, functools.partial(runtime.peers.send, owner, removed))
        for actor_id in effects.release_actors:
            runtime.actors.released(actor_id)
        if effects.unread:
            runtime.unread.note(effects.unread)

    # --- locating

    def locate(self, object_id: bytes, entry: Entry) -> None:
        """Ask a borrowed object's owner to say when it is there (once at a time)."""
        owner = entry.owner
        if owner is None or object_id in self._locating:
            return
        self._locating.add(object_id)
        self._runtime.peers.request(
            owner, Locate(0, object_id), lambda response, body: self._located(object_id, response, body)
        )

    def _located(self, object_id: bytes, response: Any, body: bytes) -> None:
        self._locating.discard(object_id)
        runtime = self._runtime
        if type(response) is Located:
            with runtime.lock:
                if response.state == STORED:
                    waiters = self._table.located(
                        object_id, STORED, size=response.size, nodes=tuple(response.nodes)
                    )
                else:
                    waiters = self._table.located(object_id, response.state, blob=body)
            for wake in waiters:
                wake()
        elif response.kind == "ConnectionError":
            runtime.fail(object_id, OwnerDiedError(object_id.hex()))
        else:
            runtime.fail(object_id, to_exception(response))

    def _on_locate(self, connection: Connection, message: Locate, payload: bytes) -> None:
        runtime = self._runtime
        object_id, rid = message.object_id, message.rid

        def answer() -> None:
            entry = self._table.entries.get(object_id)
            if entry is None:
                error = ObjectLostError(object_id.hex(), message="its owner let go of it")
                connection.send(Failure(rid, "ObjectLostError", error.message))
            elif entry.state == STORED:
                pulling = self._pulling_too(object_id, message.puller) if message.puller else []
                connection.send(Located(rid, STORED, list(entry.nodes), entry.size, pulling))
            elif entry.blob is not None:
                state = INLINE if entry.state == INLINE else ERROR
                if state == ERROR and entry.task is not None:
                    entry.task.is_error_told = True
                connection.send(Located(rid, state, [], entry.size), entry.blob)
            elif entry.state == LOST:
                connection.send(Failure(rid, "ObjectLostError", "its owner let go of it"))
            elif entry.state == ACTOR:
                connection.send(Located(rid, ACTOR))
            elif message.wait:
                runtime.when_ready(object_id, answer)
            else:
                connection.send(Located(rid, PENDING))

        entry = self._table.entries.get(object_id)
        task = entry.task if entry is not None else None
        running_on = task.conn if task is not None else None
        if running_on is not None:
            runtime.watch_for_a_while(running_on)
        answer()

    def _pulling_too(self, object_id: bytes, puller: bytes) -> list[bytes]:
        """The other nodes that are pulling an object of ours; `puller` is one of them from now on."""
        pulling = self._pulling.setdefault(object_id, set())
        others = [node for node in pulling if node != puller]
        pulling.add(puller)
        return others

    def _ends_pulling(self, object_id: bytes, node_id: bytes) -> None:
        pulling = self._pulling.get(object_id)
        if pulling is not None:
            pulling.discard(node_id)
            if not pulling:
                del self._pulling[object_id]

    # --- counts of others

    def _on_add_borrowers(self, connection: Connection, message: AddBorrowers, payload: bytes) -> None:
        with self._runtime.lock:
            known = sum(
                self._table.add_borrower(object_id, message.borrower.worker_id, count)
                for object_id, count in message.refs
            )
        connection.send(Ok(message.rid, known))
        if connection.hello is None or connection.hello.sender.worker_id != message.borrower.worker_id:
            self._watch(message.borrower)

    def _on_remove_borrower(self, connection: Connection, message: RemoveBorrower, payload: bytes) -> None:
        assert connection.hello is not None
        with self._runtime.lock:
            for object_id, count in message.refs:
                self._table.remove_borrower(object_id, connection.hello.sender.worker_id, count)
        self._runtime.after_unlock()

    # --- copies and lineage

    def _on_copy_lost(self, connection: Connection, message: CopyLost, payload: bytes) -> None:
        self._ends_pulling(message.object_id, message.node_id)
        self.copy_lost(message.object_id, message.node_id, "it could not be read there any more")

    def copy_lost(self, object_id: bytes, node_id: bytes, reason: str) -> None:
        """A node lost its copy; if it was the last of an object of ours, it is made again."""
        with self._runtime.lock:
            last = self._table.copy_lost(object_id, node_id)
            keeper = self._table.keeper_of(object_id)
        if last:
            message = f"its last copy was on node {node_id.hex()[:12]}: {reason}"
            self.recover(object_id, ObjectLostError(object_id.hex(), message=message))
        elif keeper is not None and self._runtime.agent is not None:
            # What was made by pulling may be dropped by its node at any time, unless somebody counts on it.
            self._runtime.agent.send(KeepObjects([object_id], [keeper]))

    def _on_copy_added(self, connection: Connection, message: CopyAdded, payload: bytes) -> None:
        self._ends_pulling(message.object_id, message.node_id)
        with self._runtime.lock:
            known = self._table.copy_added(message.object_id, message.node_id)
        if not known and self._runtime.agent is not None:
            self._runtime.agent.send(FreeObjects([message.object_id], [message.node_id]))

    def _on_node_gone(self, connection: Connection, message: NodeGone, payload: bytes) -> None:
        self.node_gone(message.node_id)

    def node_gone(self, node_id: bytes) -> None:
        """A node died with its store."""
        with self._runtime.lock:
            lost = [i for i, e in self._table.entries.items() if e.state == STORED and node_id in e.nodes]
        for object_id in lost:
            self.copy_lost(object_id, node_id, "that node died")
        for object_id in list(self._pulling):
            self._ends_pulling(object_id, node_id)

    def argument_lost(self, object_id: bytes, node_id: bytes, error: ObjectLostError) -> None:
        """A worker could not have an object from a node. If that is news, it is the end of that copy."""
        with self._runtime.lock:
            entry = self._table.entries.get(object_id)
            if entry is None or entry.state != STORED or node_id not in entry.nodes:
                return  # it has been seen to already
            is_last = self._table.copy_lost(object_id, node_id) or entry.owner is not None
            if entry.owner is not None:
                entry.nodes = (node_id,)  # `recover` tells the owner
        if is_last:
            self.recover(object_id, error)

    def recover(self, object_id: bytes, error: ObjectLostError) -> None:
        """A stored object cannot be had: make it again from its task, ask its owner, or declare it lost."""
        runtime = self._runtime
        again: TaskRecord | None = None
        waiters: list[Callable[[], None]] = []
        with runtime.lock:
            entry = self._table.entries.get(object_id)
            if entry is None or entry.state != STORED:
                return
            if entry.owner is not None:
                lost_nodes = entry.nodes
                entry.state = PENDING
                entry.nodes = ()
            elif entry.task is not None and entry.task.function is not None and entry.task.retries_left != 0:
                self._table.make_pending(object_id)
                if entry.task.is_done:
                    again = entry.task
                    again.is_done = False  # another of its returns may be found lost at the same time
            else:
                was_run_again = entry.task is not None and entry.task.attempt > 0
                kind = ObjectReconstructionFailedError if was_run_again else ObjectLostError
                made_by = _made_by(object_id, entry.task)
                entry.state = LOST
                entry.blob = serialize_error(kind(object_id.hex(), call_site=made_by, message=error.message))
                waiters, entry.waiters = entry.waiters or [], None
            owner = entry.owner
        if owner is not None:
            for node_id in lost_nodes:
                runtime.peers.send(owner, CopyLost(object_id, node_id))
            self.locate(object_id, entry)
        if again is not None:
            self._note_recovery(object_id)
            runtime.tasks.run_again(again)
        for wake in waiters:
            wake()

    def _note_recovery(self, object_id: bytes) -> None:
        """One line for all that are lost at about the same time, as with a node."""
        self._remade += 1
        if self._remade == 1:
            self._runtime.io.call_later(RECOVERY_LINE_S, lambda: self._tell_recovery(object_id))

    def _tell_recovery(self, first: bytes) -> None:
        count, self._remade = self._remade, 0
        more = f" and {count - 1} more" if count > 1 else ""
        logger.info("object %s%s lost: running what made them again", first.hex(), more)

    # --- streams

    def stream_item(
        self, task: TaskRecord | None, message: StreamItem, payload: bytes, connection: Connection
    ) -> None:
        """An item of a streaming generator arrived."""
        runtime = self._runtime
        stream = task.stream if task is not None else None
        waiters: list[Callable[[], None]] = []
        is_repeated = False
        with runtime.lock:
            if stream is None:
                self.refuse_return(return_id(message.task_id, message.index + 1), message.info)
            else:
                is_repeated = message.index < stream.next_index
                waiters = stream.item(runtime, message, payload)
            effects = self._table.take_effects()
        for wake in waiters:
            wake()
        if effects is not None:
            self.carry_out(effects)
        if is_repeated and task is not None:
            # By another attempt, which has to hear how far the consumer is.
            self.send_credit(task, connection)

    def send_credit(self, task: TaskRecord, connection: Connection) -> None:
        """Tell a generator how many of its items were taken."""
        address = getattr(connection.context, "address", None)
        if address is not None:
            self._runtime.peers.send(address, StreamCredit(task.task_id, task.stream.consumed))

    # --- cancel, queries

    def send_cancel(self, worker: Address, task_id: bytes, *, force: bool, recursive: bool) -> None:
        self._runtime.peers.send(worker, CancelCall(task_id, force, recursive))

    def cancel_at_owner(self, object_id: bytes, owner: Address, *, force: bool, recursive: bool) -> None:
        """Cancel the call that makes a borrowed object: its owner knows where it runs."""
        self._runtime.peers.send(owner, CancelObject(object_id, force, recursive))

    def _on_cancel_object(self, connection: Connection, message: CancelObject, payload: bytes) -> None:
        from retinue.core.api import cancel_task

        entry = self._table.entries.get(message.object_id)
        if entry is not None and entry.task is not None:
            cancel_task(self._runtime, entry.task, force=message.force, recursive=message.recursive)

    def _on_cancel(self, connection: Connection, message: CancelCall, payload: bytes) -> None:
        if self.cancel_hook is not None:
            self.cancel_hook(message)

    def _on_credit(self, connection: Connection, message: StreamCredit, payload: bytes) -> None:
        if self.credit_hook is not None:
            self.credit_hook(message)

    def _on_ping(self, connection: Connection, message: Ping, payload: bytes) -> None:
        connection.send(Ok(message.rid))

    def on_query(self, connection: Connection, message: Query, payload: bytes) -> None:
        """Answer a question about this process."""
        import msgspec

        function = self.queries.get(message.what)
        if function is None:
            connection.send(
                Failure(message.rid, "ValueError", f"this process knows nothing of {message.what!r}")
            )
            return
        connection.send(Document(message.rid), msgspec.msgpack.encode(function(message.arguments)))


def _made_by(object_id: bytes, task: TaskRecord | None) -> str:
    if task is None:
        return f"a put in task {object_id[:24].hex()}"
    actor = getattr(task.pool, "class_name", "")
    name = task.function.name if task.function is not None else f"{actor}.{task.method}"
    return f"task {name} ({task.task_id.hex()})"


def _nothing() -> None:
    """Nobody waits for the count."""


def _note_nothing(object_ids: list[bytes]) -> None:
    """No call runs here: a driver."""
