"""Store, arena, keeper and spill thread put together as the node agent does, for one client."""

import os
import queue
from collections import deque
from pathlib import Path

from retinue.core.objects import decisions as d
from retinue.core.objects.arena import Arena, map_file, map_file_writable
from retinue.core.objects.cursor import ClosedSlab, SlabCursor, is_single
from retinue.core.objects.keeper import Keeper
from retinue.core.objects.spill import SpillThread
from retinue.core.objects.store import ObjectStore
from retinue.core.objects.views import Pin, copy_into


class StoreFullError(Exception):
    pass


class MiniAgent:
    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.store = ObjectStore(budget_bytes=budget_bytes)
        self.arena = Arena.create(budget_bytes)
        self.reports: queue.SimpleQueue[tuple] = queue.SimpleQueue()
        self.keeper = Keeper(self.arena, lambda job, reason: self.reports.put((job, reason)))
        self.spill = SpillThread(folder, self.arena, lambda job, reason: self.reports.put((job, reason)))
        self.now = 0.0
        self.running = 0  # jobs in the threads
        self.answers: dict[int, d.Decision] = {}
        self.released: deque[int] = deque()
        self.cursor = SlabCursor()
        self.slabs: dict[int, memoryview] = {}
        self.serial = 0
        self.store.client_joined("me")
        self.keeper.start()
        self.spill.start()

    def put(self, object_id: bytes, data: bytes) -> None:
        if is_single(len(data)):
            self._put_single(object_id, data)
            return
        while (offset := self.cursor.take(len(data))) is None:
            slab = self._ask(
                lambda rid: self.store.request_slab(
                    "me", rid, self.cursor.slab_size(len(data)), min_size=len(data), now=self.now
                )
            )
            if isinstance(slab, d.GrantFile):
                self._fill_file(slab, object_id, data)
                return
            assert isinstance(slab, d.Grant)
            self.arena.map_writable(slab.offset, slab.size, is_warm=slab.is_warm)
            self._close(self.cursor.granted(slab.offset, slab.size))
        copy_into(self.arena.map_writable(offset, len(data)), data)
        self._carry_out(self.store.seal("me", object_id, offset, len(data)))
        self._close(self.cursor.finished(offset))

    def get(self, object_id: bytes) -> memoryview:
        place = self._ask(lambda rid: self.store.get("me", rid, object_id, now=self.now))
        if isinstance(place, d.Located):
            return self.arena.view(place.offset, place.size, Pin(place.offset, self.released))
        assert isinstance(place, d.LocatedInFile)
        fd = os.open(self.spill.path_of(place.file_id), os.O_RDONLY)
        try:
            return map_file(fd, place.file_offset, place.size, Pin(place.key, self.released))
        finally:
            os.close(fd)

    def free(self, object_id: bytes) -> None:
        self._carry_out(self.store.free([object_id]))

    def unpin_released(self) -> None:
        while self.released:
            self._carry_out(self.store.unpin("me", self.released.popleft()))

    def settle(self) -> None:
        """Wait until the threads have nothing to do."""
        while True:
            while self.running:
                self._next_report()
            self._carry_out(self.store.tick(now=self.now))  # what could not be punched is tried again
            if not self.running:
                return

    def stop(self) -> None:
        self.spill.stop()
        self.keeper.stop()
        self.arena.close()

    def _put_single(self, object_id: bytes, data: bytes) -> None:
        grant = self._ask(lambda rid: self.store.request_single("me", rid, len(data), now=self.now))
        if isinstance(grant, d.GrantFile):
            self._fill_file(grant, object_id, data)
            return
        assert isinstance(grant, d.Grant)
        copy_into(self.arena.map_writable(grant.offset, len(data), is_warm=grant.is_warm), data)
        self.arena.unmap_writable(grant.offset, len(data))
        self._carry_out(self.store.seal("me", object_id, grant.offset, len(data)))

    def _fill_file(self, grant: d.GrantFile, object_id: bytes, data: bytes) -> None:
        fd = os.open(self.spill.path_of(grant.file_id), os.O_RDWR)
        copy_into(map_file_writable(fd, len(data)), data)
        os.close(fd)
        self._carry_out(self.store.seal("me", object_id, grant.key, len(data)))

    def _close(self, slabs: list[ClosedSlab]) -> None:
        for slab in slabs:
            self.arena.unmap_writable(slab.offset, slab.size)
            self._carry_out(self.store.close_slab("me", slab.offset, used=slab.used))

    def _ask(self, call) -> d.Decision:
        self.serial += 1
        rid = self.serial
        self._carry_out(call(rid))
        while rid not in self.answers:
            self.unpin_released()
            if self.running:
                self._next_report()
            else:  # nothing will change by itself: time passes
                self.now += 1.0
                self._carry_out(self.store.tick(now=self.now))
        answer = self.answers.pop(rid)
        if isinstance(answer, d.Refuse):
            raise StoreFullError(answer)
        return answer

    def _next_report(self) -> None:
        job, reason = self.reports.get(timeout=20)
        self.running -= 1
        self._carry_out(self.store.finished(job, reason, now=self.now))

    def _carry_out(self, decisions: list[d.Decision]) -> None:
        for decision in decisions:
            match decision:
                case d.Spill() | d.Restore() | d.MakeFile() | d.DeleteFile():
                    self.running += 1
                    self.spill.submit(decision)
                case d.Warm() | d.Punch():
                    self.running += 1
                    self.keeper.submit(decision)
                case d.RecallSlab():
                    self._close(self.cursor.retire(decision.offset))
                case d.Wanted() | d.Evicted() | d.Lost():
                    pass
                case _:
                    self.answers[decision.request_id] = decision  # type: ignore[assignment]
