"""Actors as this process uses them: making them, calling them, following their lives.

Carries out what `actors.ActorQueue` decides. Lives here: the head's updates, connections to actors'
workers, replies. Does not: order and limits (`actors`), hosting an actor (`retinue.core.worker`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.core.client.actors import ALIVE, DEAD, ActorQueue
from retinue.core.client.arguments import DependencyFailed, DependencyPending, Prepared
from retinue.core.client.peers import open_connection
from retinue.core.client.replies import task_name
from retinue.core.client.tasks import TaskRecord, call_frame
from retinue.core.errors import ActorDiedError, ActorUnavailableError, PendingCallsLimitExceeded
from retinue.core.serialization import deserialize, serialize_error
from retinue.core.transport.threads import Connection
from retinue.core.wire.failures import to_exception
from retinue.core.wire.messages import (
    REPLY_ERROR,
    REPLY_REFUSED,
    ActorAnswer,
    ActorInfo,
    ActorSpec,
    ActorUpdate,
    CreateActor,
    Failure,
    FindActor,
    KillActor,
    Locate,
    ReleaseActor,
    Reply,
    StreamItem,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

logger = logging.getLogger(__name__)

FIND_AGAIN_S = 0.1
FORGET_S = 30.0


class ActorCaller:
    """All actors that this process calls."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.queues: dict[bytes, ActorQueue] = {}
        self._creations: dict[bytes, tuple[CreateActor, bytes]] = {}  # ours, until first alive
        self._kept: dict[bytes, tuple[bytes, ...]] = {}  # objects in constructor arguments
        self._idle_hooks: dict[bytes, list[Callable[[], None]]] = {}
        runtime.head.handlers[ActorUpdate] = self._on_update
        runtime.head.on_connected.append(self._head_connected)

    # --- making and finding

    def create(
        self, spec: ActorSpec, definition: bytes, prepared: Prepared, *, get_if_exists: bool = False
    ) -> ActorInfo | None:
        """Ask the head for an actor. Anonymous ones are not waited for; a named one's info is returned.

        Its constructor's top-level references are waited for first. Raises ActorAlreadyExistsError for a
        name that is taken.
        """
        runtime = self._runtime
        self._kept[spec.actor_id] = prepared.deps
        if not spec.name:
            waiting = TaskRecord(spec.actor_id, None, "__init__", slots=prepared.slots)

            def send(task: TaskRecord) -> None:
                self._send_creation(spec, definition, prepared)

            if not runtime.arguments.await_dependencies(waiting, send):
                send(waiting)
            return None
        if prepared.slots:  # as a task would wait: its CPU may be what the arguments need
            slots = [runtime.add_reference(i, runtime.table.entries[i].owner) for i in prepared.slots]
            runtime.wait(slots, len(slots), None, fetch_local=False)
        try:
            return self._create_named(spec, definition, prepared, get_if_exists)
        except BaseException as error:
            self._forget(spec.actor_id)
            if isinstance(error, DependencyFailed):
                raise deserialize(error.blob) from None
            raise

    def _forget(self, actor_id: bytes) -> None:
        """An actor of ours that does not come to be."""
        self.queues.pop(actor_id, None)
        deps = self._kept.pop(actor_id, ())
        with self._runtime.lock:
            self._runtime.table.unuse_all(deps)
        self._runtime.after_unlock()

    def _create_named(
        self, spec: ActorSpec, definition: bytes, prepared: Prepared, get_if_exists: bool
    ) -> ActorInfo:
        runtime = self._runtime
        message, payload = self._creation(spec, definition, prepared, get_if_exists)
        # Known before it is asked for: a head that dies meanwhile has a successor that never heard of it.
        self._creations[spec.actor_id] = (message, payload)
        try:
            answer, body = runtime.head.call(message, payload)
        except BaseException:
            self._creations.pop(spec.actor_id, None)
            raise
        info: ActorInfo = answer.info
        if info.actor_id != spec.actor_id:
            self._creations.pop(spec.actor_id, None)
            self._forget(spec.actor_id)
        self._updated(info, body)
        return info

    def _creation(
        self, spec: ActorSpec, definition: bytes, prepared: Prepared, get_if_exists: bool
    ) -> tuple[CreateActor, bytes]:
        """The message and payload. Raises the error of a constructor argument that failed."""
        task = TaskRecord(spec.actor_id, None, "__init__", slots=prepared.slots)
        with self._runtime.lock:
            found = self._runtime.arguments.dependencies(task)
        tail = msgspec.msgpack.encode(found) if found else b""
        return CreateActor(0, spec, len(definition), get_if_exists), definition + prepared.args + tail

    def _send_creation(self, spec: ActorSpec, definition: bytes, prepared: Prepared) -> None:
        actor_id = spec.actor_id
        try:
            message, payload = self._creation(spec, definition, prepared, False)
        except DependencyFailed as error:
            self._dead(actor_id, error.blob)
            return
        self._creations[actor_id] = (message, payload)
        self._runtime.head.request(
            message, lambda response, body: self._created(actor_id, response, body), payload
        )

    def _created(self, actor_id: bytes, response: Any, body: bytes) -> None:
        if type(response) is ActorAnswer:
            self._updated(response.info, body)
        else:
            self._dead(actor_id, serialize_error(to_exception(response)))

    def queue(self, actor_id: bytes, **options: Any) -> ActorQueue:
        """The queue of an actor; a new one for an actor of another process's asks the head where it is."""
        queue = self.queues.get(actor_id)
        if queue is None:
            with self._runtime.lock:
                is_new = actor_id not in self.queues
                queue = self.queues.setdefault(actor_id, ActorQueue(actor_id, **options))
            if is_new:
                self._find(actor_id)
        return queue

    def being_made(self) -> list[tuple[ActorQueue, bool]]:
        """Our actors that have not lived yet, and whether the head knows them: else they lack arguments."""
        queues = [self.queues.get(actor_id) for actor_id in list(self._kept)]
        return [
            (queue, queue.actor_id in self._creations)
            for queue in queues
            if queue is not None and queue.address is None and queue.state != DEAD
        ]

    def own_queue(self, actor_id: bytes, **options: Any) -> ActorQueue:
        """The queue of an actor that this process is about to create."""
        queue = self.queues[actor_id] = ActorQueue(actor_id, **options)
        return queue

    def _find(self, actor_id: bytes) -> None:
        self._runtime.head.request(
            FindActor(0, actor_id), lambda response, body: self._found(actor_id, response, body)
        )

    def _found(self, actor_id: bytes, response: Any, body: bytes) -> None:
        if type(response) is ActorAnswer:
            self._updated(response.info, body)
            return
        creation = self._creations.get(actor_id)
        if creation is not None:
            # A new head has never heard of it: it was not durable and not placed yet.
            message, payload = creation
            self._runtime.head.request(message, lambda r, b: self._created(actor_id, r, b), payload)
            return
        entry = self._runtime.table.entries.get(actor_id)
        if actor_id in self._kept:
            return  # ours, and it waits for its constructor's arguments
        if entry is None or entry.owner is None:
            self._dead(actor_id, b"")
            return
        # A handle may travel faster than its actor's creation, which waits for its arguments, maybe: the
        # owner knows. It is dead only once the owner is gone, or has let go of it.
        self._runtime.peers.request(
            entry.owner, Locate(0, actor_id, wait=False), lambda r, b: self._owner_says(actor_id, r)
        )

    def _owner_says(self, actor_id: bytes, response: Any) -> None:
        if type(response) is Failure:
            self._dead(actor_id, b"")
        else:
            self._runtime.io.call_later(FIND_AGAIN_S, lambda: self._find(actor_id))

    def _dead(self, actor_id: bytes, blob: bytes) -> None:
        self._updated(ActorInfo(actor_id, DEAD, death_cause="the cluster does not know it any more"), blob)

    def _head_connected(self, connection: Connection) -> None:
        for actor_id, queue in list(self.queues.items()):
            if queue.state != DEAD:
                connection.request(
                    FindActor(0, actor_id),
                    lambda r, b, a=actor_id: (
                        None  # type: ignore[misc]
                        if type(r) is Failure and r.kind == "ConnectionError"
                        else self._found(a, r, b)
                    ),
                )

    # --- the head's word

    def _on_update(self, connection: Connection, message: ActorUpdate, payload: bytes) -> None:
        self._updated(message.info, payload)

    def _updated(self, info: ActorInfo, payload: bytes) -> None:
        queue = self.queues.get(info.actor_id)
        if info.state in (ALIVE, DEAD):
            self._creations.pop(info.actor_id, None)
        is_ours = info.actor_id in self._kept
        if info.state == DEAD:
            deps = self._kept.pop(info.actor_id, ())
            if deps:
                with self._runtime.lock:
                    self._runtime.table.unuse_all(deps)
                self._runtime.after_unlock()
        if queue is None:
            return
        connection: Connection | None = queue.conn
        if connection is not None and info.state == DEAD and not connection.is_closed:
            # Answers that it sent before it died come first.
            with connection.read_lock:
                while not connection.is_closed and connection.receive(wait=False):
                    pass
        was_dead = queue.state == DEAD
        with self._runtime.lock:
            must_connect, failed = queue.update(info, payload)
        if failed:
            blob = self._death_blob(queue)
            for task in failed:
                self._runtime.replies.finish_with_blob(task, blob)
        elif info.state == DEAD and not was_dead and payload and is_ours:
            # Nobody waits for it, so nobody would hear why it never came to be.
            self._runtime.unread.note_actor(payload)
        if must_connect:
            self._connect(queue, info)
        if info.state == DEAD:
            self.check_idle(queue)

    def _death_blob(self, queue: ActorQueue) -> bytes:
        if queue.error_blob:
            return queue.error_blob
        who = f"actor {queue.class_name or queue.actor_id.hex()}"
        if queue.state == DEAD:
            error: Exception = ActorDiedError(
                f"{who} is dead: {queue.describe_death()}", queue.actor_id.hex()
            )
        else:
            error = ActorUnavailableError(
                f"{who} is restarting: {queue.describe_death()}", queue.actor_id.hex()
            )
        return serialize_error(error)

    def _connect(self, queue: ActorQueue, info: ActorInfo) -> None:
        assert info.address is not None
        incarnation = info.incarnation

        def opened(connection: Connection | None) -> None:
            if connection is None:
                # It died again, and the head will say so; or the network had a hiccup.
                self._runtime.io.call_later(0.2, lambda: self._ask_again(queue))
                return
            connection.context = queue
            with connection.read_lock:
                connection.process()
            failed: list[TaskRecord] = []
            with self._runtime.lock:
                stale = queue.incarnation > incarnation or queue.state == DEAD or queue.conn is not None
                if not stale:
                    self._runtime.add_direct(connection)
                    failed = queue.connected(connection, incarnation)
            for task in failed:
                message = f"the connection to actor {queue.class_name} broke during the call"
                self._runtime.replies.fail(task, ActorUnavailableError(message, queue.actor_id.hex()))
            if stale:
                connection.on_close = _ignore
                connection.lost()
                return
            self.drain(queue)

        open_connection(
            self._runtime, info.address, "calls", self._on_call_message, self._connection_lost, opened
        )

    def _connection_lost(self, connection: Connection) -> None:
        queue: ActorQueue = connection.context
        with self._runtime.lock:
            if queue.conn is connection:
                queue.disconnected()
        # Usually the head's update is on its way; after a network fault between us and a live actor
        # nobody would send one, so ask.
        if queue.state != DEAD:
            self._runtime.io.call_later(0.2, lambda: self._ask_again(queue))

    def _ask_again(self, queue: ActorQueue) -> None:
        if queue.conn is None and queue.state not in (DEAD, "RESTARTING") and not self._runtime.is_stopping:
            self._find(queue.actor_id)
            self._runtime.io.call_later(1.0, lambda: self._ask_again(queue))

    # --- calls

    def submit(self, task: TaskRecord) -> None:
        """Call a method. Raises PendingCallsLimitExceeded; a dead actor's call fails by its reference."""
        runtime = self._runtime
        queue: ActorQueue = task.pool
        if task.slots:
            runtime.arguments.await_dependencies(task, lambda t: self.drain(queue))
        failed = False
        with runtime.lock:
            if queue.state == DEAD:
                failed = True
            elif queue.submit(task):
                self._send(queue, [task], is_busy=len(queue.in_flight) > 1)
        if failed:
            runtime.replies.finish_with_blob(task, self._death_blob(queue))
            return
        runtime.submitted(queue.conn)

    def check_room(self, queue: ActorQueue) -> None:
        if queue.is_full():
            raise PendingCallsLimitExceeded(
                f"{queue.max_pending_calls} calls of actor {queue.class_name} are pending (max_pending_calls)"
            )

    def drain(self, queue: ActorQueue) -> None:
        """Send what may go now."""
        with self._runtime.lock:
            tasks = queue.sendable()
            if tasks:
                self._send(queue, tasks)
        self._runtime.submitted(queue.conn)

    def _send(self, queue: ActorQueue, tasks: list[TaskRecord], *, is_busy: bool = False) -> None:
        frames = []
        for task in tasks:
            try:
                dependencies = self._runtime.arguments.dependencies(task) if task.slots else None
            except DependencyFailed as error:
                queue.in_flight.pop(task.task_id, None)
                finish = self._runtime.replies.finish_with_blob
                self._runtime.io.post(functools.partial(finish, task, error.blob))
                continue
            except DependencyPending:  # lost since it was ready: it waits again, before those behind it
                queue.in_flight.pop(task.task_id, None)
                task.unready = 1
                queue.waiting.appendleft(task)
                self._runtime.io.post(functools.partial(self._await_again, queue, task))
                continue
            frames.append(call_frame(task, dependencies, queue.incarnation))
        if is_busy and frames:
            queue.conn.gather(frames[0], self._runtime.gathering)
        elif frames:
            queue.conn.send_frame(frames[0] if len(frames) == 1 else b"".join(frames))

    def _await_again(self, queue: ActorQueue, task: TaskRecord) -> None:
        if not self._runtime.arguments.await_dependencies(task, lambda _: self.drain(queue)):
            task.unready = 0
            self.drain(queue)

    def _on_call_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        queue: ActorQueue = connection.context
        runtime = self._runtime
        if type(message) is Reply:
            may_retry = message.status == REPLY_ERROR and runtime.replies.may_retry(
                queue.in_flight.get(message.task_id), payload
            )
            with runtime.lock:
                task = queue.answered(message.task_id)
                if task is None:
                    runtime.ownership.refuse_returns(message)
                    runtime.io.post(runtime.after_unlock)
                    return
                if message.status == REPLY_REFUSED:
                    task.conn = None
                    queue.orphans.append(task)
                    return
                waiters = runtime.replies.complete(task, message, payload, may_retry=may_retry)
                effects = runtime.table.take_effects()
            for wake in waiters:
                wake()
            if effects is not None:
                runtime.ownership.carry_out(effects)
            if self._idle_hooks:
                self.check_idle(queue)
        elif type(message) is StreamItem:
            runtime.ownership.stream_item(queue.in_flight.get(message.task_id), message, payload, connection)

    def is_busy(self) -> bool:
        """Whether any call is in flight or waits."""
        return any(q.is_busy() for q in list(self.queues.values()))

    # --- handles that go

    def when_idle(self, actor_id: bytes, then: Callable[[], None]) -> None:
        """Run `then` once no call of ours to the actor is unanswered."""
        with self._runtime.lock:
            queue = self.queues.get(actor_id)
            is_idle = queue is None or queue.state == DEAD or not queue.is_busy()
            if not is_idle:
                self._idle_hooks.setdefault(actor_id, []).append(then)
        if is_idle:
            then()

    def check_idle(self, queue: ActorQueue) -> None:
        """A call is over, however it ended."""
        hooks: list[Callable[[], None]] = []
        with self._runtime.lock:
            if not queue.is_busy():
                hooks = self._idle_hooks.pop(queue.actor_id, [])
        for then in hooks:
            then()

    def released(self, actor_id: bytes) -> None:
        """No handle of an actor of ours is left anywhere: it ends when our last calls are answered."""
        self.when_idle(actor_id, lambda: self._release(actor_id))

    def _release(self, actor_id: bytes) -> None:
        self._runtime.head.send(ReleaseActor(actor_id))
        self._runtime.io.call_later(FORGET_S, functools.partial(self._forget, actor_id))

    def kill(self, actor_id: bytes, *, no_restart: bool) -> None:
        self._runtime.head.call(KillActor(0, actor_id, no_restart))

    def cancel(self, task: TaskRecord, *, recursive: bool) -> None:
        """Cancel an actor's call: drop it if it was not sent, else tell the actor."""
        runtime = self._runtime
        queue: ActorQueue = task.pool
        with runtime.lock:
            if task.is_done or task.is_cancelled:
                return
            task.is_cancelled = True
            task.retries_left = 0
            waiting = queue.cancel_waiting(task.task_id)
        if waiting is not None:
            runtime.replies.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
        elif queue.address is not None:
            runtime.ownership.send_cancel(queue.address, task.task_id, force=False, recursive=recursive)

    def error_of(self, actor_id: bytes) -> BaseException | None:
        """The error that calls of a dead actor get; None while it is not dead."""
        queue = self.queues.get(actor_id)
        if queue is None or queue.state != DEAD:
            return None
        error = deserialize(self._death_blob(queue))
        return error if isinstance(error, BaseException) else None


def _ignore(connection: Connection) -> None:
    """It was never used."""
