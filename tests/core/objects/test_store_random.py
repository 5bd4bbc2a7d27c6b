"""Random clients, a simulated arena and disk, and an agent that answers in any order.

The arena and the files hold tokens instead of bytes, so a reader that is given the wrong place, or whose
place is reused, punched or deleted under it, is seen at once.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retinue.core.objects import decisions as d
from retinue.core.objects.cursor import SlabCursor
from retinue.core.objects.store import ObjectStore

MIB = 1 << 20
BUDGET = 16 * MIB
CLIENTS = ("agent", "a", "b", "c")
Token = tuple[bytes, int]  # object id, size


@dataclass
class ClientModel:
    cursor: SlabCursor = field(default_factory=SlabCursor)
    singles: dict[int, int] = field(default_factory=dict)  # unsealed: key -> size
    requests: dict[int, int] = field(default_factory=dict)  # request id -> size
    gets: dict[int, bytes] = field(default_factory=dict)
    pins: list[tuple[int, bytes]] = field(default_factory=list)  # key, object id


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.serial = 0
        self.store = ObjectStore(budget_bytes=BUDGET, spill_batch_bytes=4 * MIB, spill_file_bytes=8 * MIB)
        self.clients: dict[str, ClientModel] = {}
        self.arena: dict[int, Token] = {}  # offset -> what was written there
        self.files: dict[int, dict[int, Token]] = {}
        self.file_of_key: dict[int, tuple[int, int]] = {}
        self.jobs: list[d.Decision] = []
        self.kept = 0  # bytes that a punch left, all in all
        self.primaries: dict[bytes, int] = {}  # must be here: id -> size
        self.known: list[bytes] = []
        self.freed: set[bytes] = set()

    @initialize()
    def start(self) -> None:
        for name in CLIENTS:
            self.join(name)

    # What clients do

    def join(self, name: str) -> None:
        self.clients[name] = ClientModel()
        self.store.client_joined(name)

    @rule(
        name=st.sampled_from(CLIENTS),
        size=st.sampled_from([100, 70_000, 900_000, 3 * MIB]),
        pin=st.booleans(),
    )
    def put_small(self, name: str, size: int, pin: bool) -> None:
        client = self.clients[name]
        offset = client.cursor.take(size)
        if offset is None:
            self.serial += 1
            client.requests[self.serial] = size
            slab = client.cursor.slab_size(size)
            self.carry_out(self.store.request_slab(name, self.serial, slab, min_size=size, now=self.now))
            return
        object_id = self.new_object(size)
        self.arena[offset] = (object_id, size)
        self.seal(name, object_id, offset, size, pin=pin, is_primary=True)
        self.close_slabs(name, client.cursor.finished(offset))

    @rule(name=st.sampled_from(CLIENTS), size=st.sampled_from([100_000, 5 * MIB, 7 * MIB, 20 * MIB]))
    def create(self, name: str, size: int) -> None:
        self.serial += 1
        self.clients[name].requests[self.serial] = size
        self.carry_out(self.store.request_single(name, self.serial, size, now=self.now))

    @precondition(lambda self: any(c.singles for c in self.clients.values()))
    @rule(data=st.data(), pin=st.booleans(), is_primary=st.booleans(), again=st.booleans())
    def seal_single(self, data: st.DataObject, pin: bool, is_primary: bool, again: bool) -> None:
        name = data.draw(st.sampled_from([n for n, c in self.clients.items() if c.singles]))
        key = data.draw(st.sampled_from(sorted(self.clients[name].singles)))
        size = self.clients[name].singles.pop(key)
        same = [i for i in self.known if i.endswith(b"/%d" % size)]
        object_id = data.draw(st.sampled_from(same)) if again and same else self.new_object(size)
        self.write_and_seal(name, object_id, key, size, pin=pin, is_primary=is_primary)

    @rule(name=st.sampled_from(CLIENTS), size=st.sampled_from([300_000, 5 * MIB]), count=st.integers(1, 4))
    def put_several(self, name: str, size: int, count: int) -> None:
        """Put as the agent gives room, and let it spill in between."""
        for _ in range(count):
            self.create(name, size)
            self.finish_all_jobs()
            singles = self.clients[name].singles
            if self.serial not in self.clients[name].requests:
                key = max(singles, key=lambda key: (key in self.file_of_key, -key))
                size = singles.pop(key)
                self.write_and_seal(name, self.new_object(size), key, size)

    @precondition(lambda self: any(self.is_only_in_file(object_id) for object_id in self.known))
    @rule(data=st.data(), name=st.sampled_from(CLIENTS))
    def get_spilled(self, data: st.DataObject, name: str) -> None:
        object_id = data.draw(st.sampled_from([i for i in self.known if self.is_only_in_file(i)]))
        self.serial += 1
        self.clients[name].gets[self.serial] = object_id
        self.carry_out(self.store.get(name, self.serial, object_id, now=self.now))

    def is_only_in_file(self, object_id: bytes) -> bool:
        info = self.store.info(object_id)
        return info is not None and info.state == "file"

    @precondition(lambda self: any(c.singles for c in self.clients.values()))
    @rule(data=st.data())
    def abort_single(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n, c in self.clients.items() if c.singles]))
        key, _ = self.clients[name].singles.popitem()
        self.carry_out(self.store.abort(name, key))

    @precondition(lambda self: self.known)
    @rule(data=st.data(), name=st.sampled_from(CLIENTS))
    def get(self, data: st.DataObject, name: str) -> None:
        object_id = data.draw(st.sampled_from(self.known))
        self.serial += 1
        self.clients[name].gets[self.serial] = object_id
        self.carry_out(self.store.get(name, self.serial, object_id, now=self.now))

    @precondition(lambda self: any(c.gets for c in self.clients.values()))
    @rule(data=st.data())
    def cancel_get(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n, c in self.clients.items() if c.gets]))
        request_id, _ = self.clients[name].gets.popitem()
        self.carry_out(self.store.cancel_get(name, request_id))

    @precondition(lambda self: any(c.requests for c in self.clients.values()))
    @rule(data=st.data())
    def cancel_request(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n, c in self.clients.items() if c.requests]))
        request_id, _ = self.clients[name].requests.popitem()
        self.carry_out(self.store.cancel_request(name, request_id))

    @precondition(lambda self: any(c.pins for c in self.clients.values()))
    @rule(data=st.data(), everything=st.booleans())
    def unpin(self, data: st.DataObject, everything: bool) -> None:
        name = data.draw(st.sampled_from([n for n, c in self.clients.items() if c.pins]))
        pins = self.clients[name].pins
        for _ in range(len(pins) if everything else 1):
            key, _ = pins.pop(data.draw(st.integers(0, len(pins) - 1)))
            self.carry_out(self.store.unpin(name, key))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        object_id = data.draw(st.sampled_from(self.known))
        self.known.remove(object_id)
        self.primaries.pop(object_id, None)
        self.freed.add(object_id)
        self.carry_out(self.store.free([object_id]))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def make_primary(self, data: st.DataObject) -> None:
        object_id = data.draw(st.sampled_from(self.known))
        if object_id in self.store:
            self.primaries[object_id] = int(object_id.split(b"/")[1])
        self.carry_out(self.store.make_primary(object_id))

    @rule(name=st.sampled_from(CLIENTS[1:]))
    def die_and_join_again(self, name: str) -> None:
        del self.clients[name]
        self.carry_out(self.store.client_died(name))
        self.join(name)

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.5]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.store.tick(now=self.now))

    # What the agent does

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), works=st.sampled_from([True, True, True, False]))
    def finish_job(self, data: st.DataObject, works: bool) -> None:
        self.finish(self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1))), works=works)

    def finish(self, job: d.Decision, *, works: bool) -> None:
        store = self.store
        match job:
            case d.Spill() if works:
                for part in job.parts:
                    assert self.arena[part.offset] == (part.object_id, part.size), "spilled what had moved"
                self.files[job.file_id] = {p.file_offset: (p.object_id, p.size) for p in job.parts}
                self.carry_out(store.spill_done(job.file_id))
            case d.Spill():
                self.files[job.file_id] = {}
                self.carry_out(store.spill_failed(job.file_id, now=self.now))
            case d.Restore() if works:
                token = self.files[job.file_id][job.file_offset]
                assert token == (job.object_id, job.size)
                self.arena[job.offset] = token
                self.carry_out(store.restore_done(job.offset))
            case d.Restore():
                self.primaries.pop(job.object_id, None)
                self.carry_out(store.restore_failed(job.offset, "broken disk"))
            case d.MakeFile() if works:
                self.files[job.file_id] = {}
                self.carry_out(store.file_made(job.file_id))
            case d.MakeFile():
                self.files[job.file_id] = {}
                self.carry_out(store.file_failed(job.file_id, "disk full"))
            case d.Warm():
                self.carry_out(store.warmed(job.offset, is_warm=works))
            case d.Punch():
                self.wipe(job.offset, job.size)
                self.kept += 0 if works else job.size
                self.carry_out(store.punched(job.offset, is_cold=works))

    def carry_out(self, decisions: list[d.Decision]) -> None:
        for decision in decisions:
            match decision:
                case d.Grant():
                    self.wipe(decision.offset, decision.size)
                    client = self.clients[decision.client_id]
                    size = client.requests.pop(decision.request_id)
                    assert size <= decision.size
                    if decision.is_slab:
                        closed = client.cursor.granted(decision.offset, decision.size)
                        self.close_slabs(decision.client_id, closed)
                    else:
                        client.singles[decision.offset] = size
                case d.GrantFile():
                    client = self.clients[decision.client_id]
                    size = client.requests.pop(decision.request_id)
                    client.singles[decision.key] = size
                    self.file_of_key[decision.key] = (decision.file_id, 0)
                    assert decision.file_id in self.files
                case d.Refuse():
                    del self.clients[decision.client_id].requests[decision.request_id]
                case d.Located():
                    self.located(decision, decision.offset)
                    assert self.arena[decision.offset] == (decision.object_id, decision.size)
                case d.LocatedInFile():
                    self.file_of_key[decision.key] = (decision.file_id, decision.file_offset)
                    self.located(decision, decision.key)
                case d.GetFailed():
                    del self.clients[decision.client_id].gets[decision.request_id]
                case d.RecallSlab():
                    closed = self.clients[decision.client_id].cursor.retire(decision.offset)
                    self.close_slabs(decision.client_id, closed)
                case d.DeleteFile():
                    del self.files[decision.file_id]
                case d.Restore():
                    self.wipe(decision.offset, decision.size)
                    self.jobs.append(decision)
                case d.Evicted():
                    assert decision.object_id not in self.primaries, "the only copy was evicted"
                case d.Spill() | d.MakeFile() | d.Warm() | d.Punch():
                    self.jobs.append(decision)

    # Helpers

    def new_object(self, size: int) -> bytes:
        self.serial += 1
        object_id = b"%d/%d" % (self.serial, size)
        self.known.append(object_id)
        return object_id

    def seal(self, name: str, object_id: bytes, key: int, size: int, *, pin: bool, is_primary: bool) -> None:
        if is_primary:
            self.primaries[object_id] = size
        if pin:
            self.clients[name].pins.append((key, object_id))
        self.carry_out(self.store.seal(name, object_id, key, size, is_primary=is_primary, pins=int(pin)))

    def write_and_seal(
        self, name: str, object_id: bytes, key: int, size: int, *, pin: bool = False, is_primary: bool = True
    ) -> None:
        if key >= d.FILE_KEYS:
            self.files[self.file_of_key[key][0]][0] = (object_id, size)
        else:
            self.arena[key] = (object_id, size)
        self.seal(name, object_id, key, size, pin=pin, is_primary=is_primary)

    def close_slabs(self, name: str, closed: list) -> None:
        for slab in closed:
            self.carry_out(self.store.close_slab(name, slab.offset, used=slab.used))

    def located(self, decision: d.Located | d.LocatedInFile, key: int) -> None:
        client = self.clients[decision.client_id]
        assert client.gets.pop(decision.request_id) == decision.object_id
        client.pins.append((key, decision.object_id))

    def wipe(self, offset: int, size: int) -> None:
        """These bytes may be overwritten from now on."""
        for start in [s for s, (_, n) in self.arena.items() if s < offset + size and s + n > offset]:
            del self.arena[start]

    @invariant()
    def pinned_objects_lie_where_they_were(self) -> None:
        for client in self.clients.values():
            for key, object_id in client.pins:
                if key >= d.FILE_KEYS:
                    file_id, file_offset = self.file_of_key[key]
                    assert self.files[file_id][file_offset][0] == object_id
                else:
                    assert self.arena[key][0] == object_id

    @invariant()
    def primaries_are_here(self) -> None:
        for object_id, size in self.primaries.items():
            info = self.store.info(object_id)
            assert info is not None
            assert (info.size, info.is_primary) == (size, True)

    @invariant()
    def books_agree(self) -> None:
        self.store.check_invariants()
        # What is being touched ahead while a grant takes the room for it is punched when it is done, what
        # could not be punched is tried again with the next fact.
        ahead = sum(job.size for job in self.jobs if isinstance(job, d.Warm))
        assert self.store.touched_bytes <= BUDGET + ahead + self.kept

    @invariant()
    def every_request_is_known(self) -> None:
        waiting = sum(len(client.requests) for client in self.clients.values())
        assert self.store.waiting_requests >= waiting

    def finish_all_jobs(self) -> None:
        while self.jobs:
            self.finish(self.jobs.pop(0), works=True)

    def teardown(self) -> None:
        self.nothing_waits_for_ever()
        for name in list(self.clients):
            del self.clients[name]
            self.carry_out(self.store.client_died(name))
        self.carry_out(self.store.free(self.known))
        self.finish_all_jobs()
        self.store.check_invariants()
        assert (self.store.used_bytes, self.store.pinned_bytes, self.store.spilled_bytes) == (0, 0, 0)
        assert len(self.store) == 0
        assert self.store.snapshot() == []
        assert self.files == {}
        assert self.store.next_deadline() is None

    def nothing_waits_for_ever(self) -> None:
        """However full the store, while the disk has room every request and get of what is here is served."""
        self.finish_all_jobs()
        self.now += 2.0
        self.carry_out(self.store.tick(now=self.now))
        self.finish_all_jobs()
        assert self.store.waiting_requests == 0
        for client in self.clients.values():
            assert not client.requests
            assert not [object_id for object_id in client.gets.values() if object_id in self.store]


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
