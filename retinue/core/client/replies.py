"""What a call's answer means for what it returns: values, errors, another attempt. Tasks and actors alike.

Lives here: resolving returns, deciding about retries. Does not: which worker answered (`submission`,
`actor_calls`), what a dead worker means (`leasing`, `actors`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from retinue.core.client.tasks import TaskRecord
from retinue.core.errors import ObjectLostError, RetinueTaskError
from retinue.core.ids import FIRST_RETURN, return_id
from retinue.core.ownership.table import ERROR, INLINE
from retinue.core.serialization import deserialize, serialize_error
from retinue.core.wire.messages import (
    REPLY_ARGUMENT_LOST,
    REPLY_CANCELLED,
    REPLY_RETURNS,
    CallOptions,
    Reply,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime


class Replies:
    """Ends calls, however they end."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def complete(
        self, task: TaskRecord, reply: Reply, payload: bytes, *, may_retry: bool
    ) -> list[Callable[[], None]]:
        """Resolve a call's returns. With the lock; returns the waiters to wake.

        `may_retry`: what the method of that name said of the reply, if it is an error.
        """
        runtime = self._runtime
        table = runtime.table
        task.conn = None
        status = reply.status
        if status == REPLY_RETURNS and reply.returns is None:
            if task.num_returns == 1:
                waiters = table.resolve(task.task_id + FIRST_RETURN, INLINE, blob=payload)
            else:
                waiters = []
            if task.stream is not None:
                waiters = [*waiters, *task.stream.finished(None)]
            table.task_done(task, keep_lineage=False)
            return waiters
        if status == REPLY_RETURNS:
            return self._resolve_returns(task, reply, payload)
        if status == REPLY_CANCELLED:
            payload = serialize_error(runtime.cancelled_error(task.task_id, task_name(task)))
        elif may_retry and task.retries_left != 0 and not task.is_cancelled:
            self._retry(task)
            runtime.ownership.refuse_returns(reply)  # the references inside the error
            return []
        elif status == REPLY_ARGUMENT_LOST:
            runtime.io.post(functools.partial(self._argument_lost, task, payload[:-16], payload[-16:]))
            return []
        contained = runtime.ownership.take_contained(reply.returns[0].contained) if reply.returns else None
        return self._resolve_errors(task, payload, contained)

    def _argument_lost(self, task: TaskRecord, object_id: bytes, node_id: bytes) -> None:
        """The call could not begin: have the argument made again, and call again once it is there."""
        runtime = self._runtime
        if task.is_cancelled:
            self.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
            return
        error = ObjectLostError(
            object_id.hex(), message=f"an argument of {task_name(task)} lay on a node that is gone"
        )
        if task.args_object is not None and task.args_object.object_id == object_id:
            self.fail(task, error)  # its own pickled arguments: nobody can make them again
            return
        runtime.ownership.argument_lost(object_id, node_id, error)
        if task.function is not None:
            runtime.tasks.submit(task)
            return
        runtime.arguments.await_dependencies(task, lambda t: runtime.actors.drain(t.pool))
        with runtime.lock:
            task.pool.retry(task)
        runtime.actors.drain(task.pool)

    def _resolve_returns(self, task: TaskRecord, reply: Reply, payload: bytes) -> list[Callable[[], None]]:
        runtime = self._runtime
        table = runtime.table
        waiters: list[Callable[[], None]] = []
        position = 0
        stored = False
        for index, info in enumerate(reply.returns or ()):
            blob = b""
            if info.node_id:
                stored = True
            else:
                blob = payload[position : position + info.size]
                position += info.size
            waiters += runtime.ownership.take_return(return_id(task.task_id, index), info, blob)
        if task.stream is not None:
            waiters += task.stream.finished(None)
        # Only a task may be run again for a lost result: an actor's state has moved on.
        table.task_done(task, keep_lineage=stored and task.function is not None and task.retries_left != 0)
        return waiters

    def _resolve_errors(
        self, task: TaskRecord, blob: bytes, contained: list[bytes] | None = None
    ) -> list[Callable[[], None]]:
        """`contained`: the references inside the error, held once."""
        table = self._runtime.table
        waiters: list[Callable[[], None]] = []
        for index in range(max(task.num_returns, 0)):
            for held in contained or ():
                table.use(held)
            waiters += table.resolve(return_id(task.task_id, index), ERROR, blob=blob, contained=contained)
        if task.stream is not None:
            waiters += task.stream.finished(blob, contained)
            task.is_error_told = True  # the last of its items is the error
        elif task.live_returns <= 0:
            table.note_unread(task, blob)
        table.unuse_all(contained)
        table.task_done(task, keep_lineage=False)
        return waiters

    @staticmethod
    def may_retry(task: TaskRecord | None, blob: bytes) -> bool:
        """Whether the user's exception is one to retry the call after.

        Without the lock: unpickling it is the user's code, which may import, or make references.
        """
        wanted = task.retry_exceptions if task is not None and task.retries_left != 0 else None
        if not wanted or wanted is True:
            return bool(wanted)
        error = deserialize(blob)
        return isinstance(error.cause if isinstance(error, RetinueTaskError) else error, wanted)

    def _retry(self, task: TaskRecord) -> None:
        self.count_attempt(task)
        if task.function is None:
            task.pool.retry(task)
            self._runtime.io.post(lambda: self._runtime.actors.drain(task.pool))
        else:
            task.pool.resubmit([task])
            self._runtime.tasks.feed(task.pool)

    @staticmethod
    def count_attempt(task: TaskRecord) -> None:
        if task.retries_left > 0:
            task.retries_left -= 1
        task.attempt += 1
        options = task.options or CallOptions()
        options.attempt = task.attempt
        task.options = options

    def finish_with_blob(self, task: TaskRecord, blob: bytes) -> None:
        with self._runtime.lock:
            waiters = self._resolve_errors(task, blob)
        for wake in waiters:
            wake()
        self._runtime.after_unlock()
        if task.function is None:
            self._runtime.actors.check_idle(task.pool)

    def fail(self, task: TaskRecord, error: BaseException) -> None:
        """The task is over with an error that is not the user's."""
        self.finish_with_blob(task, serialize_error(error))


def task_name(task: TaskRecord) -> str:
    if task.options is not None and task.options.name:
        return task.options.name
    if task.function is not None:
        return str(task.function.name)
    return task.method
