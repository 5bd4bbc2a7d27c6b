"""The runtime of one process, driver or worker: its objects, its connections, its I/O thread.

Lives here: putting the parts together, waiting for objects, finished calls, dropped references, what to
do when a process is gone. Does not: choosing workers (`submission`), actors' calls (`actor_calls`), the
arena (`store`), running user code (`retinue.core.worker`).

One lock guards the table and all queues. It is held for microseconds and never while waiting or while
user code runs; sockets are written under it (sending never blocks), so that order of decision is order
of sending.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from retinue.core import references
from retinue.core.client.actor_calls import ActorCaller
from retinue.core.client.arguments import Arguments
from retinue.core.client.call_sites import make_ids, wanted_call_sites
from retinue.core.client.futures import Futures
from retinue.core.client.head import HeadClient
from retinue.core.client.leasing import LeaseClient
from retinue.core.client.ownership import OwnershipService
from retinue.core.client.peers import Peers
from retinue.core.client.replies import Replies
from retinue.core.client.store import NOBODY, StoreClient
from retinue.core.client.submission import TaskSubmitter
from retinue.core.client.unread import UnreadErrors
from retinue.core.client.waiting import Countdown, Once, Wait, Wake
from retinue.core.errors import (
    GetTimeoutError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    TaskCancelledError,
)
from retinue.core.metrics_report import MetricsReporter
from retinue.core.ownership.table import (
    ACTOR,
    ERROR,
    INLINE,
    LOST,
    PENDING,
    SHARD_BYTE,
    STORED,
    Entry,
    OwnershipTable,
)
from retinue.core.references import ObjectRef
from retinue.core.serialization import Serialized, deserialize, serialize, serialize_error
from retinue.core.transport import threads
from retinue.core.transport.threads import Connection, IoThread
from retinue.core.wire.messages import Address, WorkerEnv

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

INLINE_LIMIT_BYTES = 100 * 1024
# After the last call in flight the I/O thread goes on looking for a while: waking it costs a system call
# on each synchronous call otherwise.
LINGER_S = 0.05
IDLE_TICK_S = 0.25
EMPTY_TICK_S = 5.0
HOUSEKEEPING_S = 0.05
# References that are counted, or let go of, before another thread can have the lock (1 ms).
AT_ONCE = 10_000
# Puts named after one task's id. A driver's all are: their entries should not lie in one shard.
PUTS_PER_ID = 4096
WATCH_S = 1.0


class Extension(Protocol):
    """What a library's room keeps for the process; `stop` is called once, from any thread."""

    def stop(self) -> None: ...


class WaitHook:
    """What a worker does when the code that it runs begins to wait, and when it goes on."""

    def blocked(self) -> None: ...
    def unblocked(self) -> None: ...
    def check_interrupted(self) -> None:
        """Raise KeyboardInterrupt if the code that waits was cancelled; asked at least every RECHECK_S."""


class Context(threading.local):
    """What runs on this thread: the task (bytes), and how many puts it has made.

    Puts are named after `put_task_id`: the task, or an id of their own where the task's is used up.
    """

    task_id: bytes = b""
    put_task_id: bytes = b""
    puts: int = 0
    hook: WaitHook | None = None


class Runtime:
    """Everything a process needs to own objects, call tasks and actors, and be asked by others.

    Build it, then `start`. `address` is where this process listens. Threads of user code call `put`,
    `get`, `wait` and the submitters; everything else happens on the I/O thread or on whichever thread
    reads a call's connection.
    """

    def __init__(
        self, *, address: Address, node_id: bytes, job_id: bytes, token: bytes, head: Address
    ) -> None:
        self.address = address
        self._worker_id = address.worker_id
        self.node_id = node_id
        self.job_id = job_id
        self.token = token
        self.table = OwnershipTable()
        self.call_sites = wanted_call_sites(lambda: self.table.entries.items())
        self.ids = make_ids(job_id, self.call_sites)
        self.node_labels: dict[str, str] = {}
        self.node_ip = "127.0.0.1"
        self.session_dir = ""
        self.worker_env = WorkerEnv(job_id)  # what tasks and actors get unless they ask for more
        self.lock = threading.Lock()
        self.context = Context()
        self.direct = select.epoll()  # the call connections: whoever looks asks here which can be read
        self.direct_by_fd: dict[int, Connection] = {}
        self.tickers: list[Callable[[float], float]] = []
        self.agent: Connection | None = None
        self.is_stopping = False
        self._pid = os.getpid()
        self.warned_blocking = False
        self.listeners_path = ""  # where the node hands out listening sockets
        self.extensions: dict[type, Extension] = {}  # what `core.doors` keeps of this process, by class
        self.futures = Futures(self)
        self.future_of = self.futures.future_of
        self.await_ref = self.futures.await_ref
        self.gathering: deque[Connection] = deque()  # connections with calls that wait to be sent together
        self._busy_until = 0.0
        self._watch_until = 0.0
        self._last_housekeeping = 0.0
        self._watched: dict[int, float] = {}
        self.io = IoThread("retinue-io", self._tick)
        self.peers = Peers(self)
        self.head = HeadClient(self, head)
        self.store = StoreClient(self)
        self.ownership = OwnershipService(self)
        self.metrics = MetricsReporter.of(self)
        self.tickers.append(self.metrics.tick)
        self.arguments = Arguments(self)
        self.replies = Replies(self)
        self.leases = LeaseClient(self)
        self.tasks = TaskSubmitter(self)
        self.unread = UnreadErrors(self)
        self.actors = ActorCaller(self)

    def use_job(self, job_id: bytes, worker_env: WorkerEnv) -> None:
        """The job is known now (a driver learns it from the head)."""
        self.job_id = job_id
        self.ids = make_ids(job_id, self.call_sites)
        self.worker_env = worker_env

    def start(self) -> None:
        """Run the I/O thread and serve this process's references."""
        references.bind(self)
        self.io.start()

    def stop(self) -> None:
        """Close everything. Pending waits fail with ConnectionError's message as their cause."""
        self.is_stopping = True
        references.bind(None)
        self.io.stop()
        for extension in self.extensions.values():
            extension.stop()
        self.head.close()
        self.peers.close()
        self.leases.close()
        if self.agent is not None:
            self.agent.on_close = _ignore
            self.agent.lost()
        for connection in list(self.direct_by_fd.values()):
            connection.on_close = _ignore
            connection.lost()
        self.unread.flush()
        self.futures.close()
        self.store.close()
        self.direct.close()
        self.io.close()
        references.dropped.clear()

    # --- direct connections

    def add_direct(self, connection: Connection) -> None:
        """A connection for calls: read by whoever waits, looked at by the I/O thread."""
        connection.on_closing = self.remove_direct
        self.direct_by_fd[connection.fd] = connection
        self.direct.register(connection.fd, select.EPOLLIN)

    def remove_direct(self, connection: Connection) -> None:
        """Before its descriptor is closed: a forked child of user code may keep it open, and readable."""
        if self.direct_by_fd.get(connection.fd) is connection:
            del self.direct_by_fd[connection.fd]
            self.direct.unregister(connection.fd)

    def submitted(self, connection: Connection | None) -> None:
        """Calls were sent or are pending: see that somebody reads the answers."""
        if connection is not None and self._watch_until > 0.0:
            self.watch_for_a_while(connection)
        self.io.wake_if_sleeping()

    def send_gathered(self) -> None:
        """Send the calls that were kept to go together: before any wait, and by the I/O thread's tick."""
        gathering = self.gathering
        while gathering:
            try:
                connection = gathering.popleft()
            except IndexError:
                return  # another thread was faster
            connection.send_gathered()

    def watch_for_a_while(self, connection: Connection) -> None:
        """Have the I/O thread itself read a call connection for the next second: for callbacks."""
        self._watched[connection.fd] = time.monotonic() + WATCH_S
        self.io.watch(connection, add=select.EPOLLIN)

    # --- the I/O thread's tick

    def _tick(self, now: float) -> float:
        if self.gathering:
            self.send_gathered()
        self.drain_dropped()
        interval = EMPTY_TICK_S if not self.table.entries else IDLE_TICK_S
        for fd, _ in self.direct.poll(0):
            connection = self.direct_by_fd.get(fd)
            if connection is not None:
                connection.try_receive()
        if self.leases.is_busy() or self.actors.is_busy():
            self._busy_until = now + LINGER_S
        if now < self._busy_until:
            interval = threads.LOOK_INTERVAL_S
        self.leases.tick(now)
        if now - self._last_housekeeping >= HOUSEKEEPING_S:
            self._last_housekeeping = now
            self._housekeeping(now)
        if self.leases.has_leases():
            interval = min(interval, HOUSEKEEPING_S)
        for ticker in self.tickers:
            interval = min(interval, ticker(now))
        return interval

    def _housekeeping(self, now: float) -> None:
        self.leases.return_idle_leases(now)
        self.store.tick(now)
        if self._watch_until and now > self._watch_until:
            self._watch_until = 0.0
        for fd, until in list(self._watched.items()):
            connection = self.direct_by_fd.get(fd)
            if connection is None:
                del self._watched[fd]
            elif now > until:
                if connection.context is not None and connection.context.is_busy():
                    self._watched[fd] = now + WATCH_S
                else:
                    del self._watched[fd]
                    self.io.watch(connection, remove=select.EPOLLIN)

    def drain_dropped(self) -> None:
        """Let go of the references that were garbage collected since the last time."""
        dropped = references.dropped
        for _ in range(0, len(dropped), AT_ONCE):
            with self.lock:
                ids = dropped[:AT_ONCE]
                del dropped[: len(ids)]
                self.table.drop_refs(ids)
                effects = self.table.take_effects()
            if effects is not None:
                self.ownership.carry_out(effects)

    def after_unlock(self) -> None:
        """Carry out what the table decided; call without the lock after any change that ends holds."""
        with self.lock:
            effects = self.table.take_effects()
        if effects is not None:
            self.ownership.carry_out(effects)

    # --- references

    def own_address(self) -> Address:
        return self.address

    def add_reference(self, object_id: bytes, owner: Address | None) -> ObjectRef[Any]:
        """A reference that arrived in a value, or a copy of one."""
        if owner is not None and owner.worker_id == self._worker_id:
            owner = None
        with self.lock:
            entry = self.table.entries.get(object_id)
            if entry is not None:
                entry.refs += 1
            else:
                entry = self.table.add_ref(object_id, owner)
                if entry.state == LOST:
                    self._mark_lost([object_id])
            if owner is not None and not entry.counted:
                self.ownership.borrowed([object_id])
        return ObjectRef(object_id, owner)

    def add_references(self, groups: references.Groups) -> dict[bytes, ObjectRef[Any]]:
        """References that arrived in a value, by id: counted together (0.1 us each, one by one 0.5)."""
        refs: dict[bytes, ObjectRef[Any]] = {}
        for address, ids in groups:
            owner = None if address.worker_id == self._worker_id else address
            for start in range(0, len(ids), AT_ONCE):
                with self.lock:
                    more = self.table.add_refs(ids[start : start + AT_ONCE], owner)
                    if more and owner is not None:
                        self.ownership.borrowed(more)
                    elif more:
                        self._mark_lost(more)
            refs.update(zip(ids, map(ObjectRef, ids, itertools.repeat(owner)), strict=False))
        return refs

    def _mark_lost(self, object_ids: Sequence[bytes]) -> None:
        """Say of LOST objects of ours what became of them. With the lock."""
        for object_id in object_ids:
            entry = self.table.entries[object_id]
            if entry.blob is None:
                error = ObjectLostError(object_id.hex(), message="its owner let go of it")
                entry.blob = serialize_error(error)

    def reference_escaped(self, object_id: bytes) -> None:
        """The user pickled a reference by hand; nobody knows for how long it lives: for the job."""
        with self.lock:
            self.table.use(object_id)

    # --- put

    def put(self, value: Any) -> ObjectRef[Any]:
        """Make an object of a value; small ones stay in this process's memory (0.4 us, no round trip)."""
        serialized = serialize(value)
        object_id = self.next_put_id()
        contained = self._hold_found(serialized.found) if serialized.found else None
        if serialized.size <= INLINE_LIMIT_BYTES:
            with self.lock:
                self.table.own_inline(object_id, serialized.to_bytes(), contained)
        else:
            self.put_stored(object_id, serialized, contained)
        if len(references.dropped) > 1000:
            self.drain_dropped()
        return ObjectRef(object_id)

    def put_stored(
        self,
        object_id: bytes,
        serialized: Serialized,
        contained: list[bytes] | None,
        refs: int = 1,
        *,
        outlives: bool = False,
    ) -> None:
        """Write a value into the node's store and own it. `outlives`: it stays there without us."""
        self.store.write(object_id, serialized, NOBODY if outlives else None)
        with self.lock:
            self.table.own_stored(object_id, serialized.size, self.node_id, contained, refs)
        self.io.wake_if_sleeping()  # without objects it hardly looks for dropped references

    def next_put_id(self) -> bytes:
        context = self.context
        context.puts += 1
        if not context.put_task_id or context.puts % PUTS_PER_ID == 0:
            # A thread of the driver, or one that user code started: ids of a task of its own.
            context.put_task_id = self.ids.task_id()
        return self.ids.put_id(context.put_task_id, context.puts)

    def _hold_found(self, found: Sequence[tuple[bytes, Address | None]]) -> list[bytes]:
        with self.lock:
            for object_id, owner in found:
                self.table.use(object_id, owner)
        return [object_id for object_id, _ in found]

    # --- get

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values, in order. Raises the first error met, or GetTimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        shards = self.table.entries.shards
        values = []
        for ref in refs:
            object_id = ref._id
            entry = shards[object_id[SHARD_BYTE]].get(object_id)
            if entry is None:
                entry = self.missing(ref)
            if entry.state == PENDING:
                self._await_entry(object_id, entry, deadline, len(refs))
            values.append(self._value_of(object_id, entry, deadline))
        return values

    def missing(self, ref: ObjectRef[Any]) -> Entry:
        raise ObjectLostError(
            ref.hex(), message="this process does not know it: was it made before shutdown()?"
        )

    def _value_of(self, object_id: bytes, entry: Entry, deadline: float | None) -> Any:
        while True:
            state = entry.state
            if state == INLINE:
                blob = entry.blob
                assert blob is not None
                return self.ownership.load(object_id, entry, blob)
            if state == STORED:
                try:
                    view = self.store.read(object_id, entry, deadline)
                except ObjectFetchTimedOutError:
                    raise  # slow is not lost
                except ObjectLostError as error:
                    self.ownership.recover(object_id, error)
                    continue
                return self.ownership.load(object_id, entry, view)
            if state in (ERROR, LOST):
                assert entry.blob is not None
                if entry.task is not None:
                    entry.task.is_error_told = True
                raise deserialize(entry.blob)
            if state == ACTOR:
                raise TypeError("an actor handle is not an object")
            self._await_entry(object_id, entry, deadline, 1)

    # --- waiting

    def _await_entry(self, object_id: bytes, entry: Entry, deadline: float | None, total: int) -> None:
        """Wait until the entry is not pending.

        The waiting thread reads the connection that the answer will come on, if nobody else does.
        """
        if entry.owner is not None:
            self.ownership.locate(object_id, entry)
        if self.gathering:
            self.send_gathered()
        self._check_not_on_loop()
        wait = Wait(self.context.hook, deadline)
        try:
            while entry.state == PENDING:
                if self.is_stopping:
                    raise ConnectionError("retinue was shut down while waiting for an object")
                limit = wait.limit()
                if limit <= 0:
                    raise GetTimeoutError(
                        f"object {object_id.hex()} was not there in time ({total} asked for)"
                    )
                task = entry.task
                connection: Connection | None = task.conn if task is not None else None
                if (
                    connection is None
                    or connection.is_closed
                    or not connection.read_for(lambda: entry.state == PENDING, limit)
                ):
                    self._sleep(entry, connection, limit)
        finally:
            wait.over()

    def _sleep(self, entry: Entry, connection: Connection | None, limit_s: float) -> None:
        wake = Wake()
        if not self._add_waiter(entry, wake):
            return
        if connection is not None:
            connection.sleepers.append(wake)
        self.io.wake_if_sleeping()
        wake.lock.acquire(timeout=limit_s)
        self._remove_waiter(entry, wake)
        if connection is not None:
            try:
                connection.sleepers.remove(wake)
            except ValueError:
                pass  # taken by whoever woke us

    def _add_waiter(self, entry: Entry, wake: Callable[[], None]) -> bool:
        """Have `wake` called once the entry is not pending; False if it is not pending now."""
        with self.lock:
            if entry.state != PENDING:
                return False
            if entry.waiters is None:
                entry.waiters = []
            entry.waiters.append(wake)
        return True

    def _remove_waiter(self, entry: Entry, wake: Callable[[], None]) -> None:
        with self.lock:
            if entry.waiters is not None and wake in entry.waiters:
                entry.waiters.remove(wake)

    def _check_not_on_loop(self) -> None:
        if self.warned_blocking:
            return
        # Whoever runs a loop has imported it; a driver that runs none starts 16 ms sooner without it.
        running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
        if running_loop is not None and running_loop() is not None:
            self.warned_blocking = True
            logger.warning(
                "a blocking get() or wait() on an event loop's thread stops that loop; await instead"
            )

    def wait(
        self, refs: Sequence[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split into (at most `num_returns` that are there, the rest), both in order of `refs`."""
        entries = self.table.entries
        if num_returns == 1 and refs:
            # Usually the first is ready: then the rest needs no look, however long it is.
            entry = entries.get(refs[0]._id)
            if entry is not None and entry.state != PENDING:
                if fetch_local:
                    self.store.prefetch([(refs[0]._id, entry)])
                return [refs[0]], refs[1:] if isinstance(refs, list) else list(refs[1:])
        shards = entries.shards
        states = [shards[r._id[SHARD_BYTE]].get(r._id) or self.missing(r) for r in refs]
        pending = [(r._id, e) for r, e in zip(refs, states, strict=True) if e.state == PENDING]
        ready = len(refs) - len(pending)
        if ready < num_returns and (timeout_s is None or timeout_s > 0):
            self._wait_for_some(pending, num_returns - ready, timeout_s)
        done: list[ObjectRef[Any]] = []
        rest: list[ObjectRef[Any]] = []
        for ref, entry in zip(refs, states, strict=True):
            if entry.state != PENDING and len(done) < num_returns:
                done.append(ref)
            else:
                rest.append(ref)
        if fetch_local and done:
            self.store.prefetch([(r._id, entries[r._id]) for r in done if r._id in entries])
        return done, rest

    def is_ready(self, ref: ObjectRef[Any]) -> bool:
        """Whether the object is there, or failed."""
        entry = self.table.entries.get(ref._id)
        return entry is not None and entry.state != PENDING

    def wait_for_any(self, waitables: Sequence[Any], timeout_s: float | None) -> None:
        """Wait until one of some references and generators changes, or for RECHECK_S at most."""
        countdown = Countdown(1)
        self.watch_new_connections()
        for waitable in waitables:
            if isinstance(waitable, ObjectRef):
                self.when_ready(waitable._id, countdown)
                self.read_eagerly(waitable)
            elif not waitable.next_ready():
                waitable._add_waiter(countdown)
                if waitable._task.conn is not None:
                    self.watch_for_a_while(waitable._task.conn)
        self.io.wake_if_sleeping()
        countdown.lock.acquire(
            timeout=threads.RECHECK_S if timeout_s is None else min(timeout_s, threads.RECHECK_S)
        )

    def _wait_for_some(self, pending: list[tuple[bytes, Entry]], count: int, timeout_s: float | None) -> None:
        if self.gathering:
            self.send_gathered()
        self._check_not_on_loop()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        countdown = Countdown(count)
        waiting = []
        for object_id, entry in pending:
            if entry.owner is not None:
                self.ownership.locate(object_id, entry)
            if self._add_waiter(entry, countdown):
                waiting.append(entry)
            else:
                countdown()
        wait = Wait(self.context.hook, deadline)
        try:
            while countdown.left > 0 and not self.is_stopping:
                limit = wait.limit()
                if limit <= 0:
                    break
                self._wait_once(pending, countdown, limit)
        finally:
            with self.lock:
                for entry in waiting:
                    if entry.waiters is not None and countdown in entry.waiters:
                        entry.waiters.remove(countdown)
            wait.over()

    def _wait_once(self, pending: list[tuple[bytes, Entry]], countdown: Countdown, limit_s: float) -> None:
        """Read the one connection that all answers come on, or let the I/O thread read them."""
        left = [e.task.conn if e.task is not None else None for _, e in pending if e.state == PENDING]
        connections = set(left)
        if len(connections) == 1:
            (only,) = connections
            if only is not None and not only.is_closed and only.read_for(lambda: countdown.left > 0, limit_s):
                return
        for connection in connections:
            if connection is not None:
                self.watch_for_a_while(connection)
        self.watch_new_connections()
        self.io.wake_if_sleeping()
        countdown.lock.acquire(timeout=limit_s)

    def watch_new_connections(self) -> None:
        """For the next second the I/O thread also reads the connections that calls are sent on."""
        self._watch_until = time.monotonic() + WATCH_S

    # --- being told

    def when_ready(self, object_id: bytes, function: Callable[[], None]) -> None:
        """Call `function` once the object is not pending: at once, or on the thread that learns of it."""
        if self.gathering:
            self.send_gathered()
        entry = self.table.entries.get(object_id)
        if entry is None or entry.state != PENDING:
            function()
            return
        if not self._add_waiter(entry, Once(function)):
            function()
            return
        if entry.owner is not None:
            self.ownership.locate(object_id, entry)

    def read_eagerly(self, ref: ObjectRef[Any]) -> None:
        entry = self.table.entries.get(ref._id)
        task = entry.task if entry is not None else None
        connection = task.conn if task is not None else None
        if connection is not None:
            self.watch_for_a_while(connection)
        else:
            self.watch_new_connections()

    # --- others

    def process_gone(self, worker_id: bytes) -> None:
        """Another process died (its control connection broke): its holds end."""
        if self.is_stopping:
            return
        with self.lock:
            self.table.borrower_gone(worker_id)
        self.after_unlock()

    def fail(self, object_id: bytes, error: BaseException) -> None:
        """Resolve a pending object with an error."""
        blob = serialize_error(error)
        with self.lock:
            waiters = self.table.resolve(object_id, ERROR, blob=blob)
        for wake in waiters:
            wake()

    def fail_all(self, error: BaseException) -> None:
        """Nothing pending can come any more."""
        with self.lock:
            pending = [i for i, e in self.table.entries.items() if e.state == PENDING]
        for object_id in pending:
            self.fail(object_id, error)

    def cancelled_error(self, task_id: bytes, name: str) -> TaskCancelledError:
        return TaskCancelledError(task_id.hex(), f"task {name or task_id.hex()} was cancelled")

    def is_alive(self) -> bool:
        return not self.is_stopping and os.getpid() == self._pid


def _ignore(connection: Connection) -> None:
    """Nobody is left to tell."""
