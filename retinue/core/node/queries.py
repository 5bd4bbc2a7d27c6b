"""What people and tools ask about this node: processes, tasks, objects, logs, stacks, metrics.

Each answer is a msgpack document of plain lists and dicts. Questions about what only a process itself
knows are passed on to it, with a limit on the wait: a process that hangs is left out. Lives here: the
answers. Does not: how they are shown, or gathering them from all nodes (`retinue.core.admin`, `cli`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from retinue.core.config import AgentConfig
from retinue.core.ids import task_type
from retinue.core.node import log_files
from retinue.core.node.actors import ActorRoom
from retinue.core.node.leasing import Leasing
from retinue.core.node.processes import WORKER, Process, Processes
from retinue.core.node.spawner import Spawner
from retinue.core.node.store import StoreRoom
from retinue.core.transport.loop import ConnectionLostError, LoopConnection
from retinue.core.wire.failures import to_failure
from retinue.core.wire.messages import DeathInfo, Document, Failure, NodeCall, Query, TaskEvents

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 5.0
MAX_EVENT_BYTES = 4 * 1024 * 1024
DEFAULT_LIMIT = 10_000
_ENDED = object()

Arguments = dict[str, str]


class TaskEventRing:
    """The newest finished tasks of this node's workers, as they sent them, and how many were dropped."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.dropped = 0
        self.finished = 0  # in all, as `failed`
        self.failed = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._batches: deque[tuple[bytes, int, bytes, bytes]] = deque()

    def add(self, worker_id: bytes, pid: int, dropped: int, payload: bytes, *, actor_id: bytes = b"") -> None:
        """Keep a batch; `actor_id`: of the actor that the worker hosts."""
        self.dropped += dropped
        self._batches.append((worker_id, pid, actor_id, payload))
        self._bytes += len(payload)
        while self._bytes > self._max_bytes:
            *_, oldest = self._batches.popleft()
            self._bytes -= len(oldest)
            self.dropped += len(msgspec.msgpack.decode(oldest, type=list[msgspec.Raw]))

    def tasks(self, limit: int, *, wall_offset_s: float = 0.0) -> list[dict[str, Any]]:
        """The newest first. `wall_offset_s`: what makes wall-clock seconds of a monotonic reading."""
        found: list[dict[str, Any]] = []
        for worker_id, pid, actor_id, payload in reversed(self._batches):
            for task_id, name, started, ended, error in reversed(msgspec.msgpack.decode(payload)):
                if len(found) == limit:
                    return found
                found.append(
                    {
                        "task_id": task_id.hex(),
                        "name": name,
                        "state": "FAILED" if error else "FINISHED",
                        "start_time": started + wall_offset_s,
                        "end_time": ended + wall_offset_s,
                        "error_message": error,
                        "worker_id": worker_id.hex(),
                        "pid": pid,
                        "actor_id": actor_id.hex(),
                        "type": task_type(task_id, is_actors=bool(actor_id)),
                    }
                )
        return found


class QueryRoom:
    def __init__(
        self,
        config: AgentConfig,
        *,
        processes: Processes,
        leasing: Leasing,
        actors: ActorRoom,
        store: StoreRoom,
        spawner: Spawner,
    ) -> None:
        self.events = TaskEventRing()
        self._config = config
        self._processes = processes
        self._leasing = leasing
        self._actors = actors
        self._store = store
        self._spawner = spawner
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Callable[[Arguments], Awaitable[Any]]] = {
            "node": self._node,
            "workers": self._workers,
            "actors": self._actor_list,
            "objects": self._objects,
            "references": self._references,
            "tasks": self._task_list,
            "stack": self._stack,
            "metrics": self._metrics,
            "logs": self._logs,
            "list_logs": self._list_logs,
            "kill": self._kill,
        }

    def called(self, connection: LoopConnection, message: NodeCall, payload: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(connection, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def task_events(self, process: Process, message: TaskEvents, payload: bytes) -> None:
        actor = self._actors.actor_of(process.worker_id)
        actor_id = actor.spec.actor_id if actor is not None else b""
        self.events.add(process.worker_id, process.pid, message.dropped, payload, actor_id=actor_id)
        self.events.finished += message.finished
        self.events.failed += message.failed

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _answer(self, connection: LoopConnection, message: NodeCall) -> None:
        answer = self._answers.get(message.what)
        if answer is None:
            known = ", ".join(sorted(self._answers))
            text = f"an agent knows nothing of {message.what!r}; it knows {known}"
            connection.send(Failure(message.rid, "ValueError", text))
            return
        try:
            document = await answer(message.arguments)
        except (ValueError, OSError) as error:
            connection.send(to_failure(message.rid, error))
            return
        connection.send(Document(message.rid), msgspec.msgpack.encode(document))

    # --- what the agent knows

    async def _node(self, arguments: Arguments) -> Any:
        books = self._store.books
        table = self._leasing.table
        counters = books.counters
        return {
            "node_id": self._config.node_id.hex(),
            "pid": os.getpid(),
            "zygotes": self._spawner.zygote_pids(),
            "total": {name: value / 10_000 for name, value in table.resources.total.items()},
            "available": table.available(),
            "waiting": [{"resources": r, "count": n} for r, n in table.waiting_shapes()],
            "store": {
                "budget_bytes": books.budget_bytes,
                "used_bytes": books.used_bytes,
                "touched_bytes": books.touched_bytes,
                "pinned_bytes": books.pinned_bytes,
                "on_disk_bytes": books.spilled_bytes,
                "objects": len(books),
                **{name: getattr(counters, name) for name in counters.__struct_fields__},
            },
            "tasks_finished": self.events.finished,
            "tasks_failed": self.events.failed,
            "task_events_dropped": self.events.dropped,
            "actors": sum(actor.process is not None for actor in self._actors),
            "workers": sum(process.kind == WORKER for process in self._processes),
            "worker_starts": self._processes.worker_starts,
        }

    async def _workers(self, arguments: Arguments) -> Any:
        """The living ones, then those that died, the latest first."""
        living = [self._describe(process) for process in self._processes]
        dead = [self._describe_death(kind, death) for kind, death in self._processes.deaths()]
        return living + dead[: int(arguments.get("limit", DEFAULT_LIMIT))]

    def _describe(self, process: Process) -> dict[str, Any]:
        lease = self._leasing.table.lease_of(process.worker_id)
        actor = self._actors.actor_of(process.worker_id)
        return {
            "worker_id": process.worker_id.hex(),
            "node_id": self._config.node_id.hex(),
            "worker_type": process.kind.upper(),
            "state": self._leasing.pool.state_of(process.worker_id) or "running",
            "pid": process.pid,
            "job_id": process.job_id.hex(),
            "actor_id": actor.spec.actor_id.hex() if actor is not None else "",
            "name": process.label,
            "resources": {n: v / 10_000 for n, v in lease.allocation.units.items()} if lease else {},
            "is_blocked": bool(lease and lease.allocation.is_lent),
            "is_alive": True,
            "started_at": _wall_offset_s() + process.started_at,
            "runtime_env": process.env.runtime_env if process.env is not None else "{}",
        }

    def _describe_death(self, kind: str, death: DeathInfo) -> dict[str, Any]:
        return {
            "worker_id": death.worker_id.hex(),
            "node_id": self._config.node_id.hex(),
            "worker_type": kind.upper(),
            "state": "dead",
            "pid": death.pid,
            "is_alive": False,
            "exit_code": death.exit_code,
            "signal": death.signal,
            "is_intended": death.intended,
            "exit_detail": death.describe(),
        }

    async def _actor_list(self, arguments: Arguments) -> Any:
        return [
            {
                "actor_id": actor.spec.actor_id.hex(),
                "class_name": actor.spec.class_name,
                "name": actor.spec.name,
                "state": actor.state,
                "incarnation": actor.incarnation,
                "pid": actor.process.pid if actor.process is not None else 0,
                "worker_id": actor.process.worker_id.hex() if actor.process is not None else "",
                "job_id": actor.spec.job_id.hex(),
            }
            for actor in self._actors
        ]

    async def _objects(self, arguments: Arguments) -> Any:
        limit = int(arguments.get("limit", DEFAULT_LIMIT))
        return [
            {
                "object_id": info.object_id.hex(),
                "size": info.size,
                "state": info.state,
                "is_primary": info.is_primary,
                "pins": {_client_name(client): count for client, count in info.pins.items()},
                "node_id": self._config.node_id.hex(),
            }
            for info in self._store.books.snapshot()[:limit]
        ]

    async def _metrics(self, arguments: Arguments) -> Any:
        return [
            {
                "worker_id": process.worker_id.hex(),
                "pid": process.pid,
                "job_id": process.job_id.hex(),
                "metrics": msgspec.msgpack.decode(process.metrics),
            }
            for process in self._processes
            if process.metrics
        ]

    # --- what only the processes know

    async def _task_list(self, arguments: Arguments) -> Any:
        asked = await self._ask_processes("tasks", arguments)
        limit = int(arguments.get("limit", DEFAULT_LIMIT))
        _cut(asked, "tasks", limit)
        live = [process["answer"] for process in asked if process["answer"] is not None]
        return {
            "live": [task for answer in live for task in answer["tasks"]],
            "finished": self.events.tasks(limit, wall_offset_s=_wall_offset_s()),
            "dropped": self.events.dropped,
            "omitted": sum(answer["omitted"] for answer in live),
            "silent": [process["pid"] for process in asked if process["answer"] is None],
        }

    async def _references(self, arguments: Arguments) -> Any:
        asked = await self._ask_processes("objects", arguments)
        _cut(asked, "objects", int(arguments.get("limit", DEFAULT_LIMIT)))
        return asked

    async def _stack(self, arguments: Arguments) -> Any:
        return await self._ask_processes("stack", arguments)

    async def _ask_processes(self, what: str, arguments: Arguments) -> list[dict[str, Any]]:
        """What the processes say that the arguments name (all by default); None for one that is silent.

        One that ends meanwhile is left out, as if it had ended before.
        """
        chosen = [p for p in self._chosen(arguments) if p.connection is not None]
        answers = await asyncio.gather(*(self._ask(process, what, arguments) for process in chosen))
        return [
            {
                "worker_id": process.worker_id.hex(),
                "pid": process.pid,
                "kind": process.kind,
                "name": process.label,
                "answer": answer,
            }
            for process, answer in zip(chosen, answers, strict=True)
            if answer is not _ENDED
        ]

    async def _ask(self, process: Process, what: str, arguments: Arguments) -> Any:
        connection = process.connection
        assert connection is not None
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                response, payload = await connection.start_request(Query(0, what, arguments))
        except TimeoutError:
            logger.warning("process %d does not say its %s", process.pid, what)
            return None
        except ConnectionLostError:
            return _ENDED
        return msgspec.msgpack.decode(payload) if type(response) is Document else None

    def _chosen(self, arguments: Arguments) -> list[Process]:
        """Processes by `worker_id` (a prefix will do), `actor_id` or `pid`; all if none is named."""
        processes = list(self._processes)
        if worker := arguments.get("worker_id"):
            processes = [p for p in processes if p.worker_id.hex().startswith(worker)]
        if actor_id := arguments.get("actor_id"):
            hosts = {a.process for a in self._actors if a.spec.actor_id.hex().startswith(actor_id)}
            processes = [p for p in processes if p in hosts]
        if pid := arguments.get("pid"):
            processes = [p for p in processes if p.pid == int(pid)]
        return processes

    async def _kill(self, arguments: Arguments) -> Any:
        if not {"worker_id", "actor_id", "pid"} & arguments.keys():
            raise ValueError("name what to kill by worker_id, actor_id or pid")
        chosen = [p for p in self._chosen(arguments) if p.kind == "worker"]
        for process in chosen:
            reason = arguments.get("reason", "killed by hand")
            self._processes.end(process.worker_id, reason, is_forced=True, is_intended=False)
        return {"killed": [process.pid for process in chosen]}

    # --- logs

    def _log_dirs(self) -> list[str]:
        """The workers' output, then the node's own logs (and, beside the head, its)."""
        return [os.path.join(self._config.node_dir, "logs"), os.path.join(self._config.session_dir, "logs")]

    async def _list_logs(self, arguments: Arguments) -> Any:
        return log_files.list_files(self._log_dirs())

    async def _logs(self, arguments: Arguments) -> Any:
        """Part of a file from `offset` (negative: from its end). To follow it, ask again from behind that."""
        name = arguments.get("file") or self._log_of(arguments)
        path = log_files.find_file(self._log_dirs(), name)
        return log_files.read_part(path, int(arguments.get("offset", 0)))

    def _log_of(self, arguments: Arguments) -> str:
        """The file of the worker that the arguments name, living or dead."""
        if not arguments.keys() & {"worker_id", "actor_id", "pid"}:
            raise ValueError("name a file, or a worker by worker_id, actor_id or pid")
        suffix = ".err" if arguments.get("stream") == "err" else ".out"
        for process in self._chosen(arguments):
            if process.kind == WORKER:
                return os.path.basename(self._processes.log_paths(process)[suffix == ".err"])
        begin = f"worker-{arguments['worker_id'][:12]}" if "worker_id" in arguments else "worker-"
        end = f"-{arguments['pid']}{suffix}" if "pid" in arguments else suffix
        if arguments.keys() & {"worker_id", "pid"}:
            for file in log_files.list_files(self._log_dirs()):
                name = str(file["file"])
                if name.startswith(begin) and name.endswith(end):
                    return name
        raise FileNotFoundError("no such worker on this node")


def _cut(asked: list[dict[str, Any]], key: str, limit: int) -> None:
    """Leave at most `limit` rows in all answers together: they go out in one frame."""
    for process in asked:
        answer = process["answer"]
        if answer is not None:
            rows = answer[key]
            answer["omitted"] += max(0, len(rows) - limit)
            answer[key] = rows[:limit]
            limit -= len(answer[key])


def _wall_offset_s() -> float:
    """What makes wall-clock seconds, for people, of this machine's monotonic readings."""
    return time.time() - time.monotonic()


def _client_name(client: object) -> str:
    return client.hex() if isinstance(client, bytes) and len(client) == 16 else str(client)
