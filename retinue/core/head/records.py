"""What the head's tables look like in the storage: typed records in, byte strings out, and back.

Every actor is kept while it lives, not only the named ones: a write costs 20 us of the storage thread, and
an actor that no node has yet would otherwise be lost with the head. Lives here: the layout. Does not: when
to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from retinue.core.head.actors import Actor
from retinue.core.head.storage import CommitLog
from retinue.core.wire.messages import ActorSpec, Address, DeathInfo, JobInfo

META, JOBS, NODES = "meta", "jobs", "nodes"
SPECS, STATES, ARGUMENTS, DEFINITIONS = "actor_specs", "actor_states", "actor_arguments", "definitions"
KV_PREFIX = "kv/"
EPOCH, NEXT_JOB = b"epoch", b"next_job"

_encode = msgspec.msgpack.Encoder().encode


class ActorState(msgspec.Struct, array_like=True):
    """The part of an Actor that changes."""

    state: str
    incarnation: int
    node_id: bytes
    is_sent: bool
    address: Address | None
    pid: int
    num_restarts: int
    cause: str = ""
    death: DeathInfo | None = None


@dataclass(slots=True)
class Loaded:
    """Everything that an earlier head left."""

    epoch: int = 0
    next_job: int = 1
    jobs: list[JobInfo] = field(default_factory=list)
    node_ids: list[bytes] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    arguments: dict[bytes, bytes] = field(default_factory=dict)
    definitions: dict[bytes, bytes] = field(default_factory=dict)
    values: list[tuple[str, bytes, bytes]] = field(default_factory=list)


_decode_state = msgspec.msgpack.Decoder(ActorState).decode
_decode_spec = msgspec.msgpack.Decoder(ActorSpec).decode
_decode_job = msgspec.msgpack.Decoder(JobInfo).decode


def load(records: Iterable[tuple[str, bytes, bytes]]) -> Loaded:
    """Read what `Records` wrote."""
    loaded = Loaded()
    specs: dict[bytes, ActorSpec] = {}
    states: dict[bytes, ActorState] = {}
    readers: dict[str, Callable[[bytes, bytes], None]] = {
        JOBS: lambda key, value: loaded.jobs.append(_decode_job(value)),
        NODES: lambda key, value: loaded.node_ids.append(key),
        SPECS: lambda key, value: specs.__setitem__(key, _decode_spec(value)),
        STATES: lambda key, value: states.__setitem__(key, _decode_state(value)),
        ARGUMENTS: loaded.arguments.__setitem__,
        DEFINITIONS: loaded.definitions.__setitem__,
    }
    for table, key, value in records:
        if table in readers:
            readers[table](key, value)
        elif table.startswith(KV_PREFIX):
            loaded.values.append((table[len(KV_PREFIX) :], key, value))
        elif table == META and key == EPOCH:
            loaded.epoch = int(value)
        elif table == META and key == NEXT_JOB:
            loaded.next_job = int(value)
    loaded.actors = [_actor(spec, states.get(actor_id)) for actor_id, spec in specs.items()]
    return loaded


def _actor(spec: ActorSpec, state: ActorState | None) -> Actor:
    if state is None:
        return Actor(spec)
    return Actor(
        spec,
        state=state.state,
        incarnation=state.incarnation,
        node_id=state.node_id,
        is_sent=state.is_sent,
        address=state.address,
        pid=state.pid,
        num_restarts=state.num_restarts,
        cause=state.cause,
        death=state.death,
    )


class Records:
    """Writes to the log. Definitions are shared by key and go with the last actor that uses them."""

    def __init__(self, log: CommitLog, loaded: Loaded) -> None:
        self._log = log
        self.definitions = loaded.definitions
        self.arguments = loaded.arguments
        self._users: dict[bytes, set[bytes]] = {}  # class key -> actor ids
        for actor in loaded.actors:
            self._users.setdefault(actor.spec.class_key, set()).add(actor.actor_id)

    def meta(self, key: bytes, value: int) -> None:
        self._log.write(META, key, b"%d" % value)

    def save_job(self, job: JobInfo) -> None:
        self._log.write(JOBS, job.job_id, _encode(job))

    def forget_job(self, job_id: bytes) -> None:
        self._log.write(JOBS, job_id, None)

    def save_node(self, node_id: bytes) -> None:
        self._log.write(NODES, node_id, b"")

    def forget_node(self, node_id: bytes) -> None:
        self._log.write(NODES, node_id, None)

    def put_value(self, namespace: str, key: bytes, value: bytes | None) -> None:
        self._log.write(KV_PREFIX + namespace, key, value)

    def add_actor(self, spec: ActorSpec, definition: bytes, arguments: bytes) -> None:
        """Keep a new actor's spec and payload for as long as it lives."""
        self._users.setdefault(spec.class_key, set()).add(spec.actor_id)
        if spec.class_key not in self.definitions:
            self.definitions[spec.class_key] = definition
            self._log.write(DEFINITIONS, spec.class_key, definition)
        self.arguments[spec.actor_id] = arguments
        self._log.write(ARGUMENTS, spec.actor_id, arguments)
        self._log.write(SPECS, spec.actor_id, _encode(spec))

    def save_actor(self, actor: Actor) -> None:
        state = ActorState(
            actor.state,
            actor.incarnation,
            actor.node_id,
            actor.is_sent,
            actor.address,
            actor.pid,
            actor.num_restarts,
            actor.cause,
            actor.death,
        )
        self._log.write(STATES, actor.actor_id, _encode(state))

    def remove_actor(self, spec: ActorSpec) -> None:
        """It is dead."""
        if self.arguments.pop(spec.actor_id, None) is None:
            return
        for table in (SPECS, STATES, ARGUMENTS):
            self._log.write(table, spec.actor_id, None)
        users = self._users.get(spec.class_key, set())
        users.discard(spec.actor_id)
        if not users:
            self._users.pop(spec.class_key, None)
            if self.definitions.pop(spec.class_key, None) is not None:
                self._log.write(DEFINITIONS, spec.class_key, None)

    def payload(self, spec: ActorSpec) -> tuple[bytes, bytes]:
        """(definition, arguments), as add_actor had them."""
        return self.definitions.get(spec.class_key, b""), self.arguments.get(spec.actor_id, b"")
