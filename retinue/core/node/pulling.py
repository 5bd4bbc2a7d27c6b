"""Objects that come from other nodes, and go to them.

One task per object that somebody here waits for: room, sources, chunks, seal. Which chunk is asked of whom
decides `objects.pull`; `objects.transfer` moves the bytes over connections of kind "pull", which after
their Hello and an Ok carry no frames any more. Lives here: those tasks and connections. Does not: the
store's books (`store`), or whose the objects are (`owners`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import os
import random
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from retinue.core.config import AgentConfig
from retinue.core.errors import RetinueError
from retinue.core.node.owners import OwnerRoom
from retinue.core.node.store import AGENT, OwnPin, OwnSpace, StoreRoom
from retinue.core.objects import decisions as d
from retinue.core.objects.arena import map_file, map_file_writable
from retinue.core.objects.pull import (
    Ask,
    Fetch,
    Leave,
    PullBook,
    PullCancelled,
    PullDecision,
    Pulled,
)
from retinue.core.objects.transfer import Fact, Released, SourceLost, Transfers, tell
from retinue.core.transport import endpoints
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.framing import FrameDecoder, encode
from retinue.core.wire.messages import (
    Address,
    CopyAdded,
    Hello,
    Locate,
    Ok,
    PinObject,
)

logger = logging.getLogger(__name__)

ASK_OWNER_TIMEOUT_S = 10.0
# Receivers of an object that takes at least this long on its way are sources for each other.
SHARED_MIN_BYTES = 8 << 20
ASK_FOR_OTHERS_S = 0.1
UNPIN_INTERVAL_S = 0.05
SEAL_WAIT_S = 0.5
SEAL_LOOK_S = 0.01
OPEN_TIMEOUT_S = 30.0
# How often a pull asks the owner for other nodes, all known ones having failed.
MAX_ROUNDS = 3


ServedKey = tuple[int, int, int]
"""What to unpin, and the range of the arena to take out of this process's memory count (offset, size)."""


class NoCopyError(Exception):
    """Nobody that is known has the object; the message is for the one who waits."""


class Pull:
    """One object on its way here."""

    def __init__(self, message: PinObject, loop: asyncio.AbstractEventLoop) -> None:
        self.object_id = message.object_id
        self.size = message.size
        self.owner = message.owner
        self.nodes = list(message.nodes)
        self.events: asyncio.Queue[PullDecision | Released] = asyncio.Queue()
        self.space: asyncio.Future[OwnSpace] = loop.create_future()
        self.tried: set[bytes] = set()  # nodes that have it
        self.tried_partial: set[bytes] = set()  # nodes that pull it too
        self.is_cancelled = False


class Pulling:
    """Build, `run`, `close` (before the store)."""

    def __init__(
        self, config: AgentConfig, store: StoreRoom, owners: OwnerRoom, *, rng: random.Random
    ) -> None:
        self.address_of_node: Callable[[bytes], Address | None] = lambda node_id: None
        self._config = config
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._book = PullBook(rng=rng)
        self._transfers = Transfers(self._open_object, self._report)
        self._pulls: dict[bytes, Pull] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: dict[bytes, asyncio.Task[bool]] = {}
        self._owners = owners
        self._requests = itertools.count(1)
        self._spaces: dict[int, Pull] = {}
        self._opening: dict[int, tuple[bytes, concurrent.futures.Future[memoryview | None]]] = {}
        self._served_views = 0  # of objects that servers have open
        self._released: deque[ServedKey] = deque()  # what of them is not needed any more
        self._is_closed = False
        store.on_wanted = self.begin
        store.on_gone = self._gone
        store.on_own_space = self._own_space
        store.on_own_pin = self._own_pin

    async def close(self) -> None:
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        for _, future in list(self._opening.values()):
            future.cancel()
        await self._loop.run_in_executor(None, self._transfers.stop)

    # --- pulling

    def begin(self, message: PinObject) -> None:
        """Somebody waits for an object that is not here."""
        if message.object_id in self._pulls:
            return
        pull = Pull(message, self._loop)
        self._pulls[pull.object_id] = pull
        task = self._loop.create_task(self._pull(pull))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def freed(self, object_ids: list[bytes]) -> None:
        for object_id in object_ids:
            pull = self._pulls.get(object_id)
            if pull is not None:
                pull.is_cancelled = True
                self._carry_out(self._book.cancel(object_id))
        for request, (object_id, future) in list(self._opening.items()):
            if object_id in object_ids:
                del self._opening[request]
                self._store.carry_out(self._store.books.cancel_get(AGENT, request))
                future.set_result(None)

    async def _pull(self, pull: Pull) -> None:
        object_id = pull.object_id
        try:
            await self._bring(pull)
        except NoCopyError as error:
            self._store.fail_pins(object_id, "ObjectLostError", str(error))
        except (OSError, MemoryError) as error:
            self._store.fail_pins(object_id, "ObjectStoreFullError", str(error))
        except Exception as error:  # a mistake of ours; nobody must wait for ever
            logger.exception("object %s could not be pulled", object_id.hex())
            self._store.fail_pins(object_id, "RetinueSystemError", repr(error))
        finally:
            self._pulls.pop(object_id, None)
            again = self._store.waiting_for(object_id)
            if again is not None and object_id not in self._store.books and not self._is_closed:
                self.begin(again)  # it came, and went while this task was ending

    async def _bring(self, pull: Pull) -> None:
        if not self._others(pull.nodes):
            if self._config.node_id in pull.nodes and await self._seal_came(pull):
                return
            await self._ask_owner(pull)
        key, target, unmap = await self._space(pull)
        store, books = self._store, self._store.books
        self._book.start(pull.object_id, pull.size)
        self._transfers.begin(pull.object_id, target)
        is_here = False
        try:
            await self._fetch(pull)
            is_here = not pull.is_cancelled
        finally:
            del target
            if is_here:
                # Pinned: other nodes may still be reading it from where it is being written.
                store.carry_out(books.seal(AGENT, pull.object_id, key, pull.size, is_primary=False, pins=1))
                self._has_come(pull)
            if not self._transfers.end(pull.object_id) and not self._is_closed:
                await self._released_by_servers(pull)
            if not self._is_closed:
                unmap()
                store.carry_out(books.unpin(AGENT, key) if is_here else books.abort(AGENT, key))
        if not is_here:
            raise NoCopyError("it was freed while it was on its way here")

    def _has_come(self, pull: Pull) -> None:
        if pull.object_id in self._store.books:  # else it was freed meanwhile
            self._owners.holds([pull.object_id], pull.owner)
        self._owners.tell(pull.owner, CopyAdded(pull.object_id, self._config.node_id))

    async def _seal_came(self, pull: Pull) -> bool:
        """It was made here: its maker's notice may lie unread while the reader's request is read."""
        deadline = self._loop.time() + SEAL_WAIT_S
        while self._loop.time() < deadline:
            if pull.object_id in self._store.books:
                return True
            await asyncio.sleep(SEAL_LOOK_S)
        return False

    async def _space(self, pull: Pull) -> tuple[int, memoryview, Callable[[], None]]:
        """Room for the object: its key, a writable view, and what to call when it is written."""
        request = next(self._requests)
        self._spaces[request] = pull
        self._store.carry_out(
            self._store.books.request_single(AGENT, request, pull.size, now=self._loop.time())
        )
        space = await pull.space
        arena = self._store.arena
        match space:
            case d.Grant(_, _, offset):
                target = arena.map_writable(offset, pull.size)
                return offset, target, lambda: arena.unmap_writable(offset, pull.size)
            case d.GrantFile(_, _, key, file_id):
                fd = os.open(self._store.path_of(file_id), os.O_RDWR | os.O_CLOEXEC)
                try:
                    return key, map_file_writable(fd, pull.size), lambda: None
                finally:
                    os.close(fd)
            case _:
                raise MemoryError(self._store.describe_refusal(space))

    def _own_space(self, decision: OwnSpace) -> None:
        assert isinstance(decision.request_id, int)
        pull = self._spaces.pop(decision.request_id)
        if not pull.space.done():
            pull.space.set_result(decision)

    async def _fetch(self, pull: Pull) -> None:
        """Pull from every node that has it; when none is left, ask the owner for others."""
        sharing = self._loop.create_task(self._share(pull)) if pull.size >= SHARED_MIN_BYTES else None
        try:
            for _ in range(MAX_ROUNDS):
                await self._use_sources(pull, self._others(pull.nodes), is_complete=True)
                if await self._over(pull):
                    return
                await self._ask_owner(pull)
                has_new = any(node not in pull.tried for node in self._others(pull.nodes))
                if not has_new and not self._book.has_complete_source(pull.object_id):
                    break
        finally:
            if sharing is not None:
                sharing.cancel()
        self._carry_out(self._book.cancel(pull.object_id))
        while not isinstance(await pull.events.get(), PullCancelled):
            pass
        raise NoCopyError("no node that had a copy can be reached, or has it any more")

    async def _use_sources(self, pull: Pull, nodes: list[bytes], *, is_complete: bool) -> None:
        """Pull from these too. Each is tried once as having it all, once as pulling it itself."""
        tried = pull.tried if is_complete else pull.tried_partial
        new = [node for node in nodes if node not in tried]
        tried.update(new)
        linked = await asyncio.gather(*(asyncio.shield(self._link(node)) for node in new))
        for node, is_linked in zip(new, linked, strict=True):
            if is_linked:
                self._carry_out(self._book.source_found(pull.object_id, node, is_complete=is_complete))

    async def _over(self, pull: Pull) -> bool:
        """Wait until the pull is done or cancelled (True), or nobody is left who has all of it."""
        while self._book.has_complete_source(pull.object_id) or pull.object_id not in self._book:
            if isinstance(await pull.events.get(), Pulled | PullCancelled):
                return True
        return False

    async def _share(self, pull: Pull) -> None:
        """While the object is on its way, keep finding those who pull it too, or have it by now."""
        while True:
            try:
                located = await self._locate(pull, is_pulling=True)
            except (OSError, TimeoutError, RetinueError):
                return  # it can do without
            await self._use_sources(pull, self._others(getattr(located, "nodes", [])), is_complete=True)
            await self._use_sources(pull, self._others(getattr(located, "pulling", [])), is_complete=False)
            await asyncio.sleep(ASK_FOR_OTHERS_S)

    async def _released_by_servers(self, pull: Pull) -> None:
        while not isinstance(await pull.events.get(), Released):
            pass

    def _others(self, nodes: list[bytes]) -> list[bytes]:
        return [node for node in nodes if node != self._config.node_id]

    def _carry_out(self, decisions: list[PullDecision]) -> None:
        for decision in decisions:
            if isinstance(decision, Fetch | Ask | Leave):
                self._transfers.carry_out(decision)
            else:
                pull = self._pulls.get(decision.object_id)
                if pull is not None:
                    pull.events.put_nowait(decision)

    def _report(self, fact: Fact) -> None:
        """In a transfer thread."""
        if not self._is_closed:
            self._loop.call_soon_threadsafe(self._fact, fact)

    def _fact(self, fact: Fact) -> None:
        if isinstance(fact, Released):
            pull = self._pulls.get(fact.object_id)
            if pull is not None:
                pull.events.put_nowait(fact)
            return
        if isinstance(fact, SourceLost) and isinstance(fact.source_id, bytes):
            self._links.pop(fact.source_id, None)
        self._carry_out(tell(self._book, fact))

    # --- links to other nodes

    def _link(self, node_id: bytes) -> asyncio.Task[bool]:
        """Whether there is a bulk connection to the node, made if need be."""
        task = self._links.get(node_id)
        if task is None or (task.done() and not (not task.cancelled() and task.result())):
            task = self._links[node_id] = self._loop.create_task(self._connect(node_id))
        return task

    async def _connect(self, node_id: bytes) -> bool:
        address = self.address_of_node(node_id)
        if address is None:
            return False
        try:
            sock = await self._loop.run_in_executor(None, self._connect_blocking, address)
        except (OSError, ConnectionError) as error:
            logger.warning("no bulk connection to node %s: %s", node_id.hex()[:12], error)
            return False
        self._transfers.add_source(node_id, sock)
        return True

    def _connect_blocking(self, address: Address) -> socket.socket:
        config = self._config
        sock, rest = endpoints.connect(address, config.node_id, config.token)
        try:
            sock.sendall(encode(Hello("pull", config.address)))
            _await_ok(sock, rest)
        except BaseException:
            sock.close()
            raise
        return sock

    def serve(self, connection: LoopConnection) -> None:
        """Take a connection of kind "pull" off the loop and answer it from a thread."""
        sock = _take_off_loop(connection)
        try:
            sock.sendall(encode(Ok(0)))
        except OSError:
            sock.close()
            return
        self._transfers.serve(sock)

    # --- serving objects

    def _open_object(self, object_id: bytes) -> memoryview | None:
        """In a server's thread: a pinned view of an object that is here."""
        if self._is_closed:
            return None
        future: concurrent.futures.Future[memoryview | None] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._pin_for_server, object_id, future)
        try:
            return future.result(OPEN_TIMEOUT_S)
        except (TimeoutError, concurrent.futures.CancelledError):
            return None

    def _pin_for_server(self, object_id: bytes, future: concurrent.futures.Future[memoryview | None]) -> None:
        if self._is_closed or object_id not in self._store.books:
            future.set_result(None)
            return
        request = next(self._requests)
        self._opening[request] = (object_id, future)
        self._store.carry_out(self._store.books.get(AGENT, request, object_id, now=self._loop.time()))

    def _own_pin(self, decision: OwnPin) -> None:
        assert isinstance(decision.request_id, int)
        _, future = self._opening.pop(decision.request_id)
        view: memoryview | None = None
        match decision:
            case d.Located():
                pin = self._served((decision.offset, decision.offset, decision.size))
                view = self._store.arena.view(decision.offset, decision.size, pin)
            case d.LocatedInFile():
                pin = self._served((decision.key, 0, 0))
                fd = os.open(self._store.path_of(decision.file_id), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    view = map_file(fd, decision.file_offset, decision.size, pin)
                finally:
                    os.close(fd)
            case _:
                pass
        if not future.cancelled():
            future.set_result(view)

    def _served(self, key: ServedKey) -> ServerPin:
        if not self._served_views:
            self._loop.call_later(UNPIN_INTERVAL_S, self._unpin_released)
        self._served_views += 1
        return ServerPin(key, self._released)

    def _unpin_released(self) -> None:
        """Servers' threads cannot say when they let go of a view (finalizers): look, while there are any."""
        if self._is_closed:
            return
        for _ in range(len(self._released)):
            key, offset, size = self._released.popleft()
            self._served_views -= 1
            if size:
                self._store.arena.forget(offset, size)
            self._store.carry_out(self._store.books.unpin(AGENT, key))
        if self._served_views:
            self._loop.call_later(UNPIN_INTERVAL_S, self._unpin_released)

    # --- owners

    async def _ask_owner(self, pull: Pull) -> None:
        """Learn from the object's owner which nodes have it now."""
        try:
            located = await self._locate(pull)
        except (OSError, TimeoutError) as error:
            raise NoCopyError(f"its owner cannot be asked where it is: {error}") from error
        except RetinueError as error:
            raise NoCopyError(str(error)) from error
        pull.nodes = list(getattr(located, "nodes", ()))
        pull.size = getattr(located, "size", 0) or pull.size

    async def _locate(self, pull: Pull, *, is_pulling: bool = False) -> Any:
        """`is_pulling`: the owner may name this node to others who pull it."""
        async with asyncio.timeout(ASK_OWNER_TIMEOUT_S):
            connection = await self._owners.connection(pull.owner)
            puller = self._config.node_id if is_pulling else b""
            located, _ = await connection.request(Locate(0, pull.object_id, wait=False, puller=puller))
        return located

    def _gone(self, object_id: bytes) -> None:
        """This node's copy was evicted, or could not be read back."""
        waiting = self._store.waiting_for(object_id)
        self._owners.gone(object_id, waiting.owner if waiting is not None else None)


class ServerPin:
    """Says which object to unpin when a server's last view of it is gone. Takes no lock, in any thread."""

    __slots__ = ("_key", "_released")

    def __init__(self, key: ServedKey, released: deque[ServedKey]) -> None:
        self._key = key
        self._released = released

    def __del__(self) -> None:
        self._released.append(self._key)


def _take_off_loop(connection: LoopConnection) -> socket.socket:
    """The connection's socket, blocking, the loop having let go of it."""
    transport_ = connection._transport
    assert transport_ is not None
    transport_.pause_reading()
    fd = transport_.get_extra_info("socket").fileno()
    sock = socket.socket(fileno=os.dup(fd))
    connection.on_close = None
    transport_.abort()
    sock.setblocking(True)
    return sock


def _await_ok(sock: socket.socket, rest: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(rest)
    while True:
        for message, _ in decoder.frames():
            if type(message) is Ok:
                return
            raise ConnectionError(f"{type(message).__name__} instead of an Ok")
        chunk = sock.recv(4096)
        if not chunk:
            raise ConnectionError("the other agent closed the bulk connection")
        decoder.feed(chunk)
