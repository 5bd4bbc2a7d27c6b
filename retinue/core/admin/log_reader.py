"""Read the log files of a cluster's nodes: which there are, whose is whose, parts of them, as they grow.

Lives here: finding the file of an actor, task or process, its tail, decoding, following. Does not: the
files themselves (the agents read them).
"""

from __future__ import annotations

import codecs
import fnmatch
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from retinue.core.admin.ask import Asker, RetinueStateApiException
from retinue.core.admin.rows import LOOPBACK, task_rows
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import FindActor, NodeCall, NodeInfo

PART_BYTES = 128 * 1024
FOLLOW_INTERVAL_S = 0.5
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")

# Reads from an offset (negative: from the end): the bytes, where they begin, and the file's size.
ReadPart = Callable[[int], tuple[bytes, int, int]]


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file on a node, by its name or by the process that it belongs to."""

    node: NodeInfo
    arguments: dict[str, str]


# --- pure -------------------------------------------------------------------------------------------------


def group_of(name: str) -> str:
    """The kind of a log file.

    >>> group_of("worker-0a1b2c3d4e5f-17.err")
    'worker_err'
    """
    if name.startswith("worker-"):
        return "worker_err" if name.endswith(".err") else "worker_out"
    for kind in ("head", "agent", "admin"):
        if name.startswith(kind):
            return kind
    if "/" in name:
        return name.partition("/")[0]
    return "other"


def tail_offset(read: ReadPart, lines: int) -> int:
    """Where the last `lines` lines of a file begin; half a line at its end counts."""
    data, begin, size = read(-PART_BYTES)
    # A newline at the very end ends the last line; it does not begin one.
    wanted = lines + (1 if data.endswith(b"\n") else 0)
    if lines <= 0:
        return size
    while True:
        position = len(data)
        while wanted > 0 and (position := data.rfind(b"\n", 0, position)) >= 0:
            wanted -= 1
        if wanted == 0:
            return begin + position + 1
        if begin == 0:
            return 0
        before = max(0, begin - PART_BYTES)
        data, begin = read(before)[0][: begin - before], before


class TextFilter:
    """Bytes in, text (or bytes) out: decodes across the borders of parts, and drops colours if asked to."""

    def __init__(self, encoding: str | None, errors: str, *, drop_ansi: bool) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)(errors) if encoding is not None else None
        self._drop_ansi = drop_ansi
        self._rest = b""

    def feed(self, data: bytes, *, is_last: bool = False) -> Any:
        if self._drop_ansi:
            # An escape sequence never spans lines: only whole lines go out.
            whole, newline, rest = (self._rest + data).rpartition(b"\n")
            data, self._rest = whole + newline, rest
            if is_last:
                data, self._rest = data + self._rest, b""
            data = _ANSI.sub(b"", data)
        return self._decoder.decode(data, is_last) if self._decoder is not None else data


# --- asking -----------------------------------------------------------------------------------------------


def choose_node(asker: Asker, node_id: str | None, node_ip: str | None) -> NodeInfo:
    """The living node of that id (a prefix will do) or address. Raises RetinueStateApiException."""
    found = [
        node
        for node in asker.nodes()
        if node.alive
        and (node_id is None or node.node_id.hex().startswith(node_id))
        and (node_ip is None or (node.address.host or LOOPBACK) == node_ip)
    ]
    if not found:
        raise RetinueStateApiException(f"there is no living node {node_id or node_ip}")
    return min(found, key=lambda node: not node.is_head)


def list_files(asker: Asker, node: NodeInfo, glob: str = "*") -> dict[str, list[str]]:
    """The log files of a node by kind."""
    groups: dict[str, list[str]] = {}
    for file in asker.ask_node(node, "list_logs"):
        if fnmatch.fnmatch(file["file"], glob):
            groups.setdefault(group_of(file["file"]), []).append(file["file"])
    return groups


def file_of_actor(asker: Asker, actor_id: str, suffix: str) -> LogFile:
    """The output of the process that hosts the actor, or did before it died."""
    try:
        info = asker.ask_head(FindActor(0, bytes.fromhex(actor_id))).info
    except ValueError as error:
        raise RetinueStateApiException(str(error)) from error
    if info.address is not None:
        worker_id, node_id = info.address.worker_id, info.address.node_id
    elif info.death is not None:
        worker_id, node_id = info.death.worker_id, info.death.node_id or info.node_id
    else:
        raise RetinueStateApiException(f"actor {actor_id} has no process (it is {info.state})")
    node = choose_node(asker, node_id.hex(), None)
    return LogFile(node, {"worker_id": worker_id.hex(), "stream": suffix})


def file_of_task(asker: Asker, task_id: str, attempt_number: int, suffix: str) -> LogFile:
    """The output of the worker that ran the task; what its other tasks print is in it as well."""
    answers = asker.ask_nodes("tasks", {"limit": "10000"})
    for row in task_rows(answers.answers):
        if row["task_id"] == task_id and row["attempt_number"] == attempt_number and row["worker_id"]:
            node = choose_node(asker, row["node_id"], None)
            return LogFile(node, {"worker_id": row["worker_id"], "stream": suffix})
    raise RetinueStateApiException(
        f"attempt {attempt_number} of task {task_id} is not known to have run (any more)"
    )


def file_of_pid(asker: Asker, pid: int, suffix: str, node: NodeInfo | None) -> LogFile:
    """The output of a worker by its process id, on `node` or wherever there is one."""
    end = f"-{pid}.{suffix}"
    for candidate in [node] if node is not None else [n for n in asker.nodes() if n.alive]:
        for file in asker.ask_node(candidate, "list_logs"):
            if file["file"].startswith("worker-") and file["file"].endswith(end):
                return LogFile(candidate, {"file": file["file"]})
    raise RetinueStateApiException(f"there is no log of a worker with pid {pid}")


def read_file(
    asker: Asker,
    file: LogFile,
    *,
    tail: int = -1,
    follow: bool = False,
    interval_s: float | None = None,
    encoding: str | None = "utf-8",
    errors: str = "strict",
    drop_ansi: bool = False,
    timeout_s: float = 30.0,
) -> Generator[Any, None, None]:
    """The file, or its last `tail` lines, in parts; with `follow` also what is added, until closed.

    Raises RetinueStateApiException if there is no such file, or the node is gone.
    """
    text = TextFilter(encoding, errors, drop_ansi=drop_ansi)
    address, token = file.node.address, asker.target.token
    try:
        with BlockingClient(address, token, kind="tool", timeout_s=timeout_s) as client:

            def read(offset: int) -> tuple[bytes, int, int]:
                request = NodeCall(0, "logs", {**file.arguments, "offset": str(offset)})
                answer = msgspec.msgpack.decode(client.request(request)[1])
                return answer["data"], answer["offset"], answer["size"]

            offset = tail_offset(read, tail) if tail >= 0 else 0
            parts = _parts(read, offset, follow=follow, interval_s=interval_s or FOLLOW_INTERVAL_S)
            for data in parts:
                if shown := text.feed(data):
                    yield shown
            if shown := text.feed(b"", is_last=True):
                yield shown
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeError):
            raise
        raise RetinueStateApiException(f"the log cannot be read: {error}") from error


def _parts(read: ReadPart, offset: int, *, follow: bool, interval_s: float) -> Iterator[bytes]:
    while True:
        data, _, _ = read(offset)
        offset += len(data)
        if data:
            yield data
        elif follow:
            time.sleep(interval_s)
        else:
            return
