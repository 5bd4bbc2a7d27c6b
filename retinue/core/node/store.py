"""The node's object store, carried out: space, pins and spilling for this node's processes.

Owns the arena, the keeper and the spill thread; feeds `objects.store` and does what it decides. Lives here:
that, and handing out the arena's descriptor. Does not: bookkeeping (`objects.store`), bringing objects from
other nodes (`pulling`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from retinue.core.objects import decisions as d
from retinue.core.objects.arena import Arena
from retinue.core.objects.keeper import Keeper, KeeperJob
from retinue.core.objects.spill import MIN_FREE_SHARE, SpillJob, SpillThread
from retinue.core.objects.store import ObjectStore, StoreProtocolError
from retinue.core.transport import endpoints
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import (
    AbortObject,
    CancelPin,
    CreateObject,
    Failure,
    Message,
    Pinned,
    PinObject,
    Sealed,
    SlabClosed,
    SlabRecall,
    SlabRequest,
    SpaceGranted,
    Unpin,
)

logger = logging.getLogger(__name__)

AGENT = b"agent"  # the client id under which the agent itself pulls and serves objects

OwnSpace = d.Grant | d.GrantFile | d.Refuse
OwnPin = d.Located | d.LocatedInFile | d.GetFailed


class StoreRoom:
    """Build, set the callbacks, `run`, `close`. Client ids are worker ids."""

    def __init__(
        self, *, budget_bytes: int, node_dir: str, spill_dir: str, disk_reserve: float = MIN_FREE_SHARE
    ) -> None:
        """`spill_dir`: a folder that other nodes may use too; "" is `node_dir`. `disk_reserve`: see there."""
        self.name_of: Callable[[bytes], str] = lambda worker_id: worker_id.hex()[:12]
        self.on_wanted: Callable[[PinObject], None] = lambda message: None
        self.on_gone: Callable[[bytes], None] = lambda object_id: None  # this node has it no more
        self.on_own_space: Callable[[OwnSpace], None] = lambda decision: None
        self.on_own_pin: Callable[[OwnPin], None] = lambda decision: None
        self.books = ObjectStore(budget_bytes=budget_bytes)
        self.arena = Arena.create(self.books.budget_bytes)
        self.arena_path = os.path.join(node_dir, "arena.sock")
        self._listener = endpoints.listen_unix(self.arena_path)
        self._spill_dir = Path(spill_dir or node_dir, f"spill-{os.path.basename(node_dir)}")
        self._spill_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._loop = asyncio.get_running_loop()
        self._keeper = Keeper(self.arena, self._finished)
        self._spiller = SpillThread(self._spill_dir, self.arena, self._finished, min_free_share=disk_reserve)
        self._connections: dict[bytes, LoopConnection] = {}
        self._pins: dict[bytes, dict[tuple[bytes, int], PinObject]] = {}  # unanswered, by object
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_closed = False

    def run(self) -> None:
        self.books.client_joined(AGENT)
        self._keeper.start()
        self._spiller.start()
        self._loop.add_reader(self._listener.fileno(), self._hand_out)

    async def close(self) -> None:
        """After the workers are gone."""
        self._is_closed = True
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        if self._timer is not None:
            self._timer.cancel()
        await self._loop.run_in_executor(None, self._stop_threads)
        self.arena.close()

    def _stop_threads(self) -> None:
        self._spiller.stop()
        self._keeper.stop()
        try:
            self._spill_dir.rmdir()
        except OSError:
            pass  # not only ours

    def _hand_out(self) -> None:
        """Whoever can reach the socket, in its 0700 folder, gets the arena's descriptor."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                try:
                    socket.send_fds(sock, [b"arena"], [self.arena.fd])
                except OSError as error:
                    logger.warning("the arena could not be handed out: %s", error)

    # --- clients

    def joined(self, worker_id: bytes, connection: LoopConnection) -> None:
        self._connections[worker_id] = connection
        self.books.client_joined(worker_id)

    def died(self, worker_id: bytes) -> None:
        """All that it sent has been read."""
        if self._connections.pop(worker_id, None) is not None:
            for object_id, waiters in list(self._pins.items()):
                for key in [key for key in waiters if key[0] == worker_id]:
                    self._answered(object_id, key)
            self.carry_out(self.books.client_died(worker_id))

    @contextmanager
    def _held_to_its_word(self, worker_id: bytes) -> Iterator[None]:
        """A client that contradicts the books is ended: what it believes of the arena is wrong."""
        try:
            yield
        except StoreProtocolError as error:
            logger.error("ending %s, which contradicts the object store: %s", self.name_of(worker_id), error)
            connection = self._connections.get(worker_id)
            if connection is not None:
                connection.close()

    def slab_requested(self, worker_id: bytes, message: SlabRequest) -> None:
        books, now = self.books, self._loop.time()
        with self._held_to_its_word(worker_id):
            self.carry_out(
                books.request_slab(worker_id, message.rid, message.size, min_size=message.min_size, now=now)
            )

    def object_created(self, worker_id: bytes, message: CreateObject) -> None:
        now = self._loop.time()
        with self._held_to_its_word(worker_id):
            self.carry_out(self.books.request_single(worker_id, message.rid, message.size, now=now))

    def sealed(self, worker_id: bytes, message: Sealed) -> None:
        with self._held_to_its_word(worker_id):
            for object_id, key, size, pins in message.objects:
                self.carry_out(self.books.seal(worker_id, object_id, key, size, pins=pins))

    def slab_closed(self, worker_id: bytes, message: SlabClosed) -> None:
        with self._held_to_its_word(worker_id):
            self.carry_out(self.books.close_slab(worker_id, message.offset, used=message.used))

    def aborted(self, worker_id: bytes, message: AbortObject) -> None:
        with self._held_to_its_word(worker_id):
            self.carry_out(self.books.abort(worker_id, message.key))

    def pin(self, worker_id: bytes, message: PinObject) -> None:
        with self._held_to_its_word(worker_id):
            decisions = self.books.get(worker_id, message.rid, message.object_id, now=self._loop.time())
            self._pins.setdefault(message.object_id, {})[worker_id, message.rid] = message
            self.carry_out(decisions)

    def pin_cancelled(self, worker_id: bytes, message: CancelPin) -> None:
        for object_id, waiters in list(self._pins.items()):
            if (worker_id, message.request) in waiters:
                self._answered(object_id, (worker_id, message.request))
                self.carry_out(self.books.cancel_get(worker_id, message.request))
                return

    def unpinned(self, worker_id: bytes, message: Unpin) -> None:
        with self._held_to_its_word(worker_id):
            for key, count in message.pins:
                self.carry_out(self.books.unpin(worker_id, key, count))

    def freed(self, object_ids: list[bytes]) -> None:
        """No reference is left anywhere."""
        self.carry_out(self.books.free(object_ids))
        for object_id in object_ids:
            if object_id in self._pins:
                self.fail_pins(object_id, "ObjectLostError", "it was freed while it was on its way here")

    def kept(self, object_ids: list[bytes]) -> None:
        """The owner counts on the copies here: spill them rather than drop them."""
        for object_id in object_ids:
            self.carry_out(self.books.make_primary(object_id))

    def fail_pins(self, object_id: bytes, kind: str, text: str) -> None:
        """The object will not come: tell those who wait for it."""
        for (worker_id, rid), message in list(self._pins.pop(object_id, {}).items()):
            self.carry_out(self.books.cancel_get(worker_id, rid))
            self._tell(worker_id, Failure(message.rid, kind, text))

    def waiting_for(self, object_id: bytes) -> PinObject | None:
        """The first unanswered request for the object."""
        return next(iter(self._pins.get(object_id, {}).values()), None)

    def _answered(self, object_id: bytes, key: tuple[bytes, int]) -> None:
        waiters = self._pins.get(object_id)
        if waiters is not None:
            waiters.pop(key, None)
            if not waiters:
                del self._pins[object_id]

    # --- carrying out

    def carry_out(self, decisions: list[d.Decision]) -> None:
        for decision in decisions:
            self._carry_out_one(decision)
        self._arm()

    def _carry_out_one(self, decision: d.Decision) -> None:
        match decision:
            case d.Grant() | d.GrantFile() | d.Refuse():
                if decision.client_id == AGENT:
                    self.on_own_space(decision)
                else:
                    self._answer_space(decision)
            case d.Located() | d.LocatedInFile() | d.GetFailed():
                if decision.client_id == AGENT:
                    self.on_own_pin(decision)
                else:
                    self._answer_pin(decision)
            case d.RecallSlab(client_id, offset):
                self._tell(client_id, SlabRecall(offset))
            case d.Wanted(object_id):
                waiting = self.waiting_for(object_id)
                if waiting is not None:
                    self.on_wanted(waiting)
            case d.Evicted(object_id) | d.Lost(object_id):
                self.on_gone(object_id)
            case d.Spill() | d.Restore() | d.MakeFile() | d.DeleteFile():
                self._spiller.submit(decision)
            case d.Warm() | d.Punch():
                self._keeper.submit(decision)

    def _answer_space(self, decision: OwnSpace) -> None:
        rid = decision.request_id
        assert isinstance(rid, int)
        answer: Message
        match decision:
            case d.Grant():
                answer = SpaceGranted(
                    rid, decision.offset, decision.size, is_slab=decision.is_slab, is_warm=decision.is_warm
                )
            case d.GrantFile():
                answer = SpaceGranted(rid, decision.key, decision.size, path=self.path_of(decision.file_id))
            case d.Refuse():
                answer = Failure(rid, "ObjectStoreFullError", self.describe_refusal(decision))
        self._tell(decision.client_id, answer)

    def _answer_pin(self, decision: OwnPin) -> None:
        rid = decision.request_id
        assert isinstance(rid, int)
        assert isinstance(decision.client_id, bytes)
        self._answered(decision.object_id, (decision.client_id, rid))
        answer: Message
        match decision:
            case d.Located():
                answer = Pinned(rid, decision.offset, decision.offset, decision.size)
            case d.LocatedInFile():
                path = self.path_of(decision.file_id)
                answer = Pinned(rid, decision.key, decision.file_offset, decision.size, path)
            case d.GetFailed():
                answer = Failure(rid, "ObjectLostError", f"its copy here is lost: {decision.reason}")
        self._tell(decision.client_id, answer)

    def describe_refusal(self, refusal: d.Refuse) -> str:
        books = self.books
        holders = [
            f"{self._name(holder)} pins {holder.pinned_bytes >> 20} MiB"
            + (f" and has {holder.unsealed_bytes >> 20} MiB unwritten" if holder.unsealed_bytes else "")
            for holder in refusal.holders
        ]
        return (
            f"no room for {refusal.size} bytes: {refusal.reason}. "
            f"The store of {books.budget_bytes >> 20} MiB holds {books.used_bytes >> 20} MiB, "
            f"{books.spilled_bytes >> 20} MiB are on disk in {self._spill_dir}. "
            f"Largest holders: {', '.join(holders) or 'none'}"
        )

    def _name(self, holder: d.Holder) -> str:
        return self.name_of(holder.client_id) if isinstance(holder.client_id, bytes) else "?"

    def path_of(self, file_id: int) -> str:
        return str(self._spiller.path_of(file_id))

    def _tell(self, client_id: d.ClientId, message: Message) -> None:
        assert isinstance(client_id, bytes)
        connection = self._connections.get(client_id)
        if connection is not None:
            connection.send(message)

    # --- the threads' answers, brought to the loop

    def _finished(self, job: KeeperJob | SpillJob, failure: str | None) -> None:
        self._to_loop(self._job_answered, job, failure)

    def _job_answered(self, job: KeeperJob | SpillJob, failure: str | None) -> None:
        self.carry_out(self.books.finished(job, failure, now=self._loop.time()))

    def _to_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        if not self._is_closed:
            self._loop.call_soon_threadsafe(self._unless_closed, callback, arguments)

    def _unless_closed(self, callback: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if not self._is_closed:
            callback(*arguments)

    # --- time

    def _arm(self) -> None:
        deadline = self.books.next_deadline()
        if deadline is None or self._is_closed:
            return
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.carry_out(self.books.tick(now=self._loop.time()))
