"""The public functions over the runtime: get, put, wait, remote, kill, cancel, ...

Lives here: checking arguments and calling the runtime. Does not: starting a cluster (`driver`).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any, TypeVar, overload

from retinue.core.actor import ActorClass, ActorHandle, handle_of
from retinue.core.client.actors import ActorQueue
from retinue.core.client.runtime import Runtime
from retinue.core.client.streams import ObjectRefGenerator
from retinue.core.client.tasks import TaskRecord
from retinue.core.current import get_runtime
from retinue.core.errors import UnsupportedError
from retinue.core.references import ObjectRef
from retinue.core.remote_function import RemoteFunction
from retinue.core.wire.messages import FindActor, ListActors, ListNodes

T = TypeVar("T")


def remote(*args: Any, **options: Any) -> Any:
    """Make a function a remote function, or a class an actor class; with or without options.

    Raises TypeError for anything else, and what a wrong option raises.
    """
    if len(args) == 1 and not options and (inspect.isclass(args[0]) or callable(args[0])):
        return _make_remote(args[0], {})
    if args or not options:
        raise TypeError("use @retinue.remote, or @retinue.remote(option=value, ...)")

    def decorate(thing: Any) -> Any:
        return _make_remote(thing, options)

    return decorate


def _make_remote(thing: Any, options: dict[str, Any]) -> Any:
    if isinstance(thing, RemoteFunction | ActorClass):
        raise TypeError(f"{thing!r} is remote already")
    if inspect.isclass(thing):
        return ActorClass(thing, options)
    if (
        inspect.isfunction(thing)
        or inspect.isbuiltin(thing)
        or (callable(thing) and hasattr(thing, "__name__"))
    ):
        return RemoteFunction(thing, options)
    raise TypeError(f"@retinue.remote takes a function or a class, got {thing!r}")


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None, _use_object_store: bool = False) -> T: ...
@overload
def get(
    object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None, _use_object_store: bool = False
) -> list[T]: ...
def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a reference, or the values of a list of them.

    Arrays, Arrow tables and tensors that lie in the store come without a copy, read-only. Waits at most
    `timeout` seconds (None: for ever), then raises GetTimeoutError. A task's error is raised as an
    instance of the user's exception type too; of several, the first in order.
    """
    if _use_object_store:
        raise UnsupportedError("_use_object_store concerns tensor transports, which are not supported")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout is at least 0 seconds, got {timeout}")
    if type(object_refs) is ObjectRef:
        return get_runtime().get((object_refs,), timeout)[0]
    if isinstance(object_refs, ObjectRefGenerator):
        return [get(ref, timeout=timeout) for ref in object_refs]
    if not isinstance(object_refs, list | tuple):
        raise ValueError(f"get() takes an ObjectRef or a list of them, got {type(object_refs).__name__}")
    for ref in object_refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"get() takes a list of ObjectRefs, which holds a {type(ref).__name__}")
    return get_runtime().get(object_refs, timeout)


def put(value: Any, *, _owner: Any = None, _tensor_transport: str = "object_store") -> ObjectRef[Any]:
    """Make an object of a value. Above 100 KiB it lies in the node's store, below in this process."""
    if _owner is not None:
        raise UnsupportedError("put(_owner=) is not supported: the process that puts owns the object")
    if _tensor_transport != "object_store":
        raise UnsupportedError(f"put(_tensor_transport={_tensor_transport!r}) is not supported")
    if type(value) is ObjectRef:
        raise TypeError(
            "put() of an ObjectRef is not allowed: put the value, or put a list that holds the reference"
        )
    return get_runtime().put(value)


def wait(
    ray_waitables: Sequence[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Split references into (ready, not ready), waiting until `num_returns` are ready or `timeout` seconds.

    Both lists keep the order given; the first has at most `num_returns`. An object whose task failed is
    ready. An ObjectRefGenerator counts as ready when its next item is there, or it ended.
    """
    if isinstance(ray_waitables, ObjectRef):
        raise TypeError("wait() takes a list of ObjectRefs, got one ObjectRef")
    if not isinstance(ray_waitables, list | tuple):
        raise TypeError(f"wait() takes a list of ObjectRefs, got {type(ray_waitables).__name__}")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout is at least 0 seconds, got {timeout}")
    if not ray_waitables:
        return [], []
    if isinstance(num_returns, bool) or not isinstance(num_returns, int) or num_returns <= 0:
        raise ValueError(f"num_returns is at least 1, got {num_returns!r}")
    if num_returns > len(ray_waitables):
        raise ValueError(f"num_returns is {num_returns}, but there are only {len(ray_waitables)} references")
    kinds = set(map(type, ray_waitables))  # in C, as it is asked 1,000 times for 1,000 references
    if ObjectRefGenerator in kinds:
        return _wait_for_generators(ray_waitables, num_returns, timeout)
    if kinds != {ObjectRef}:
        wrong = (kinds - {ObjectRef}).pop()
        raise TypeError(f"wait() takes a list of ObjectRefs, which holds a {wrong.__name__}")
    if len({ref._id for ref in ray_waitables}) != len(ray_waitables):
        raise ValueError("wait() takes each reference once; the list holds duplicates")
    return get_runtime().wait(ray_waitables, num_returns, timeout, fetch_local)


def _wait_for_generators(
    waitables: Sequence[Any], num_returns: int, timeout: float | None
) -> tuple[list[Any], list[Any]]:
    deadline = None if timeout is None else time.monotonic() + timeout
    runtime = get_runtime()
    while True:
        ready = [
            w
            for w in waitables
            if (w.next_ready() if isinstance(w, ObjectRefGenerator) else runtime.is_ready(w))
        ][:num_returns]
        left = None if deadline is None else deadline - time.monotonic()
        if len(ready) >= num_returns or (left is not None and left <= 0):
            return ready, [w for w in waitables if not any(w is r for r in ready)]
        runtime.wait_for_any(waitables, left)


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor at once; calls under way fail. With `no_restart=False` it may restart."""
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"kill() takes an actor's handle, got {type(actor).__name__}; tasks are ended by cancel()"
        )
    get_runtime().actors.kill(actor._id, no_restart=no_restart)


def cancel(ray_waitable: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the call that makes this object; fetching it then raises TaskCancelledError.

    A call that has not started is dropped. A running task gets KeyboardInterrupt; with `force` its
    process is ended. An async method is cancelled; a synchronous one can ask
    `get_runtime_context().is_canceled()`. With `recursive` the calls that it made are cancelled too.
    A call that is over is left alone.
    """
    runtime = get_runtime()
    if isinstance(ray_waitable, ObjectRefGenerator):
        cancel_task(runtime, ray_waitable._task, force=force, recursive=recursive)
        return
    if type(ray_waitable) is not ObjectRef:
        raise TypeError(f"cancel() takes an ObjectRef, got {type(ray_waitable).__name__}")
    entry = runtime.table.entries.get(ray_waitable._id)
    if entry is None:
        return
    if entry.owner is not None:
        runtime.ownership.cancel_at_owner(ray_waitable._id, entry.owner, force=force, recursive=recursive)
    elif entry.task is not None:
        cancel_task(runtime, entry.task, force=force, recursive=recursive)


def cancel_task(runtime: Runtime, task: TaskRecord, *, force: bool, recursive: bool) -> None:
    """Cancel a call of this process's."""
    if isinstance(task.pool, ActorQueue):
        if force:
            raise ValueError("force=True is for tasks; end an actor with kill()")
        runtime.actors.cancel(task, recursive=recursive)
    else:
        runtime.tasks.cancel(task, force=force, recursive=recursive)


def cancel_children(runtime: Runtime, task_id: bytes) -> None:
    """Cancel the calls that a cancelled one made in this process."""
    with runtime.lock:
        tasks = {e.task.task_id: e.task for e in runtime.table.entries.values() if e.task is not None}
    for task in tasks.values():
        if task.parent == task_id and not task.is_done:
            cancel_task(runtime, task, force=False, recursive=True)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The handle of a named actor; it does not keep the actor alive.

    Raises ValueError if there is none of that name in the namespace (default: this job's).
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"get_actor() takes the actor's name, got {name!r}")
    runtime = get_runtime()
    wanted = runtime.worker_env.namespace if namespace is None else namespace
    answer, _ = runtime.head.call(FindActor(0, b"", name, wanted))
    return handle_of(runtime, answer.info)


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the living named actors; with `all_namespaces` dicts of name and namespace."""
    runtime = get_runtime()
    namespace = None if all_namespaces else runtime.worker_env.namespace
    answer, _ = runtime.head.call(ListActors(0, True, namespace))
    named = [a.spec for a in answer.actors if a.spec is not None and a.state != "DEAD"]
    if all_namespaces:
        return [{"name": s.name, "namespace": s.namespace} for s in named]
    return [s.name for s in named]


def nodes() -> list[dict[str, Any]]:
    """All nodes that the cluster has seen, as dicts with Ray's keys."""
    answer, _ = get_runtime().head.call(ListNodes(0))
    return [
        {
            "NodeID": node.node_id.hex(),
            "Alive": node.alive,
            "NodeManagerAddress": node.address.host or "127.0.0.1",
            "NodeManagerHostname": node.hostname,
            "NodeManagerPort": node.address.port,
            "Resources": node.total if node.alive else {},
            "Labels": node.labels,
            "alive": node.alive,
            "NodeName": node.hostname,
            "DeathReason": node.death_reason,
            "IsHeadNode": node.is_head,
        }
        for node in answer.nodes
    ]


def cluster_resources() -> dict[str, float]:
    """The resources of all living nodes together."""
    return _sum_resources("total")


def available_resources() -> dict[str, float]:
    """What is free of them now (reported within about 50 ms)."""
    return _sum_resources("available")


def _sum_resources(field: str) -> dict[str, float]:
    answer, _ = get_runtime().head.call(ListNodes(0))
    total: dict[str, float] = {}
    for node in answer.nodes:
        if node.alive:
            for name, amount in getattr(node, field).items():
                total[name] = round(total.get(name, 0.0) + amount, 4)
    return {name: amount for name, amount in total.items() if amount > 0 or field == "total"}


def get_gpu_ids() -> list[int] | list[str]:
    """The GPUs that the running task or actor was granted: indices, or UUIDs if the node was given those."""
    from retinue.core.runtime_context import get_runtime_context

    ids = get_runtime_context().get_accelerator_ids()["GPU"]
    return [int(i) for i in ids] if all(i.isdecimal() for i in ids) else ids


def timeline(filename: str | None = None) -> Any:
    """The finished calls as a Chrome trace: a list of events, or written to `filename`."""
    from retinue.core.admin.timeline import chrome_trace

    return chrome_trace(get_runtime(), filename)
