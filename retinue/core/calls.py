"""Making a call, of a task or of an actor's method: its record, its entries, and what the caller gets.

Lives here: what both have in common. Does not: options (`remote_function`, `actor`), sending (`client`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from retinue.core.client.runtime import Runtime
from retinue.core.client.streams import ObjectRefGenerator, StreamState
from retinue.core.client.tasks import FunctionDef, TaskRecord
from retinue.core.ids import FIRST_RETURN, return_id
from retinue.core.references import ObjectRef
from retinue.core.wire.messages import CallOptions


class CallPlan(Protocol):
    """What the calls of one function or method with one set of options have in common."""

    call_options: CallOptions | None
    num_returns: int
    retries: int
    retry_exceptions: Any


def make_call(
    runtime: Runtime,
    plan: CallPlan,
    function: FunctionDef | None,
    method: str,
    pool: Any,
    submit: Callable[[TaskRecord], None],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Own the call's returns and `submit` it; `pool` is the ShapePool or ActorQueue that it goes through.

    Returns one ObjectRef, a list of them, None, or an ObjectRefGenerator.
    """
    prepared = runtime.arguments.prepare(args, kwargs)
    task_id = runtime.ids.task_id()
    options = plan.call_options
    if prepared.args_object is not None or (options is not None and plan.retries):
        # A record of its own: attempts are counted in it, arguments named.
        options = msgspec.structs.replace(options) if options is not None else CallOptions()
        options.args_object = prepared.args_object
    num_returns = plan.num_returns
    task = TaskRecord(
        task_id,
        function,
        method,
        prepared.args,
        prepared.deps,
        prepared.slots,
        num_returns,
        num_returns,
        plan.retries,
    )
    task.options = options
    task.pool = pool
    task.retry_exceptions = plan.retry_exceptions
    task.parent = runtime.context.task_id
    if num_returns == 1:
        object_id = task_id + FIRST_RETURN
        with runtime.lock:
            runtime.table.own(object_id, task)
        if options is not None and options.streaming:
            task.stream = StreamState(task_id)
            submit(task)
            return ObjectRefGenerator(runtime, task, ObjectRef(object_id))
        submit(task)
        return ObjectRef(object_id)
    with runtime.lock:
        for index in range(num_returns):
            runtime.table.own(return_id(task_id, index), task)
    submit(task)
    if num_returns == 0:
        return None
    return [ObjectRef(return_id(task_id, index)) for index in range(num_returns)]
