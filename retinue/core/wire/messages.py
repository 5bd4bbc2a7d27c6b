"""Every message that crosses a process border inside Retinue.

All are msgspec Structs encoded as msgpack arrays with an integer tag. New fields go last and have
defaults, so that older and newer processes can talk. A message with a `rid` other than 0 is a request
and is answered by exactly one `Response` with the same `rid` on the same connection; everything else
is one-way. Bytes that are not ours to look into (pickles, definitions, log text) travel behind the
header as the frame's payload, never in a field.

Kinds of connection, named in `Hello.kind`:
  calls    caller -> worker: Define, LeaseBegin, Call, ... and Reply, StreamItem back
  peer     any process -> any process, served by its control thread: ownership, cancel, queries
  agent    worker or driver -> its node agent: registration, leases, store
  head     agent, driver or worker -> head: cluster state
  node     node agent -> node agent: forwarded leases, object lookups
  pull     node agent -> node agent: the bulk connection of object transfers (not framed after Hello)
  door     library -> library over `retinue.core.doors`
  listener library -> its node's agent, over a socket that hands out descriptors
  tool     whoever looks at a node -> its agent: NodeCall
"""

from __future__ import annotations

from msgspec import Struct


class Message(Struct, array_like=True, gc=False):
    """Base of all messages."""


class Response(Message):
    """Base of the messages that answer a request; they match it by `rid`."""


# --- parts of messages ---------------------------------------------------------------------------------


class Address(Struct, array_like=True, frozen=True, gc=False):
    """Where a process listens. Processes of one node use `path` (a Unix socket), others host and port."""

    worker_id: bytes
    node_id: bytes
    path: str
    host: str = ""
    port: int = 0


class WorkerEnv(Struct, array_like=True, frozen=True):
    """What a worker process must be like before it runs user code. Its encoding is the pool's key."""

    job_id: bytes
    env_vars: dict[str, str] = {}
    working_dir: str = ""
    sys_path: list[str] = []
    preload: list[str] = []
    py_executable: str = ""
    main_script: str = ""
    runtime_env: str = "{}"  # the user's runtime_env as JSON, for the runtime context
    namespace: str = ""  # in which named actors are looked up


class WorkerStart(Struct, array_like=True):
    """What a new worker process is told by its zygote (or on its command line where it is exec'ed)."""

    worker_id: bytes
    node_id: bytes
    agent: Address
    token: bytes
    session_dir: str
    node_dir: str
    env: WorkerEnv
    start_token: int
    lifeline_fd: int  # end of file there means that the agent is gone
    socket_path: str  # where the worker is to listen
    tcp_host: str = ""  # listen on TCP as well, for callers on other nodes; "" = Unix socket only
    num_threads: int = 1  # for BLAS and OpenMP, until a lease says more


class Shape(Struct, array_like=True, frozen=True):
    """What the tasks of one lease have in common: resources (CPU, GPU, memory, custom), where and in what.

    `strategy` is "" (default: pack, then spill), "SPREAD", or "node:<hex>[:soft]".
    """

    resources: dict[str, float]
    env: WorkerEnv
    strategy: str = ""


class DeathInfo(Struct, array_like=True, frozen=True):
    """How a process died, for the error that its callers get."""

    worker_id: bytes = b""
    pid: int = 0
    exit_code: int | None = None  # None while unknown or when a signal ended it
    signal: int | None = None
    reason: str = ""  # "" for none known; "out of memory: ..." when the monitor ended it
    log_tail: str = ""
    node_id: bytes = b""
    intended: bool = False  # asked for (kill, exit_actor, out of scope), not a crash

    def describe(self) -> str:
        """One paragraph for an error message: who died and how, with its last log lines."""
        if self.signal is not None:
            how = f"killed by signal {self.signal}"
        elif self.exit_code is not None:
            how = f"exited with code {self.exit_code}"
        else:
            how = "ended"
        text = f"worker process {self.pid} {how}" if self.pid else how
        if self.reason:
            text += f" ({self.reason})"
        if self.log_tail:
            text += "; its last output:\n" + self.log_tail.rstrip()
        return text


class CallOptions(Struct, array_like=True):
    """What most calls do not have; None in their Call."""

    name: str = ""  # the task's name for people, "" = the function's
    concurrency_group: str = ""
    attempt: int = 0
    streaming: bool = False
    stream_backpressure: int = -1  # unconsumed items after which the generator pauses; -1 = never
    deadline: float = 0.0  # wall clock seconds, 0 = none
    trace: str = ""  # W3C traceparent
    retry_exceptions: bool = False
    max_calls: int = 0
    args_object: StoredObject | None = None  # arguments too large for a frame lie in the arena
    out_of_order: bool = False
    request_id: str = ""
    events: bool = True  # remember the call for `retinue list tasks` and the timeline


class StoredObject(Struct, array_like=True, frozen=True):
    """An object in some node's store: enough for any process to find it."""

    object_id: bytes
    owner: Address
    node_id: bytes  # a node that has a copy
    size: int


class Dependency(Struct, array_like=True, frozen=True):
    """A top-level ObjectRef argument, resolved by the caller: its bytes, or where they lie.

    The dependencies of a call are encoded as one msgpack list behind the arguments.
    """

    blob: bytes | None = None
    stored: StoredObject | None = None


class RefCount(Struct, array_like=True, frozen=True):
    """A reference handed on: `object_id` with its owner (an actor's id where a handle is meant)."""

    object_id: bytes
    owner: Address
    count: int = 1


class ReturnInfo(Struct, array_like=True, frozen=True):
    """One return. `size` bytes of the payload are its blob, unless it is stored on `node_id`."""

    size: int = 0
    node_id: bytes = b""
    is_error: bool = False
    contained: list[RefCount] = []


# --- every connection ----------------------------------------------------------------------------------


class Hello(Message, tag=1):
    """The first frame of every connection: its kind and who speaks."""

    kind: str
    sender: Address
    job_id: bytes = b""
    protocol: int = 1


class Ok(Response, tag=2):
    """Done; carries whatever small answer the request documents."""

    rid: int
    value: int = 0


class Failure(Response, tag=3):
    """Not done. `kind` is the name of a class in `retinue.exceptions`; nothing has changed."""

    rid: int
    kind: str
    message: str


class Document(Response, tag=4):
    """An answer for people or tools; the payload is msgpack."""

    rid: int


class Ping(Message, tag=5):
    """Answered by Ok."""

    rid: int


class Query(Message, tag=6):
    """Ask a process about itself ("tasks", "objects", "stack", "metrics", "memory"); answered by Document."""

    rid: int
    what: str
    arguments: dict[str, str] = {}


# --- calls: caller -> worker ----------------------------------------------------------------------------


class Define(Message, tag=10):
    """A function or class definition (payload, part `index` of `total`), before the first call of it."""

    key: bytes
    index: int = 0
    total: int = 1


class LeaseBegin(Message, tag=11):
    """The worker is leased to this caller: what it may use until LeaseEnd or the connection's end."""

    lease_id: int
    resources: dict[str, float]
    instances: dict[str, list[float]] = {}  # e.g. {"GPU": [0, 0, 0.5]}: the share of each index


class Call(Message, tag=12):
    """Run a function (`target` its key) or an actor's method (`method` its name).

    Payload: `args_size` bytes of pickled (args, kwargs), then the encoded dependencies; empty = no
    arguments. `seq` counts the calls of one caller to one actor, from 0 at each incarnation.
    """

    task_id: bytes
    target: bytes
    method: str
    num_returns: int
    args_size: int
    seq: int = 0
    incarnation: int = 0
    options: CallOptions | None = None


class Reply(Message, tag=13):
    """The call is over. One inline return: the payload is its blob. Otherwise `returns` says.

    `status`: 0 returns, 1 the payload is an error blob, 2 cancelled, 3 refused (wrong incarnation).
    `exec_us`: how long user code ran. `held`: references from the arguments that the worker keeps.
    """

    task_id: bytes
    status: int = 0
    exec_us: int = 0
    returns: list[ReturnInfo] | None = None


class HandBack(Message, tag=14):
    """These calls were not started and will not be; the caller may place them elsewhere."""

    task_ids: list[bytes]


class StreamItem(Message, tag=15):
    """Item `index` of a streaming generator."""

    task_id: bytes
    index: int
    info: ReturnInfo


class StreamCredit(Message, tag=16):
    """The consumer has taken `consumed` items; the generator may go on that far plus its back-pressure."""

    task_id: bytes
    consumed: int


class WorkerExit(Message, tag=17):
    """The worker will take no more calls on this connection (max_calls reached, or it exits)."""

    reason: str = ""


REPLY_RETURNS, REPLY_ERROR, REPLY_CANCELLED, REPLY_REFUSED = 0, 1, 2, 3
# The call was not run: an argument is lost. Payload: its object id, then the node it should have been on.
REPLY_ARGUMENT_LOST = 4


# --- peer: ownership, cancel ----------------------------------------------------------------------------


class Locate(Message, tag=20):
    """Ask the owner for an object; answered by Located, with `wait` only once the object is there.

    `puller`: the node that asks is pulling it, and may be named to others who do.
    """

    rid: int
    object_id: bytes
    wait: bool = True
    puller: bytes = b""


class Located(Response, tag=21):
    """Where the object is: `state` as in `ownership.table`; an inline or error blob is the payload.

    The receiver is not counted as a borrower of `contained` by this; it asks if it keeps any.
    """

    rid: int
    state: int
    nodes: list[bytes] = []
    size: int = 0
    pulling: list[bytes] = []  # nodes that have part of it, for who is pulling it too


class AddBorrowers(Message, tag=22):
    """Count `borrower` as holding these references of the receiver's; answered by Ok."""

    rid: int
    refs: list[tuple[bytes, int]]
    borrower: Address


class RemoveBorrower(Message, tag=23):
    """The sender no longer holds these references; `count` is how often it had been counted."""

    refs: list[tuple[bytes, int]]


class CancelCall(Message, tag=24):
    """Cancel the call, and with `recursive` those that it made."""

    task_id: bytes
    force: bool = False
    recursive: bool = True


class CopyLost(Message, tag=25):
    """The copy on `node_id` is gone; the owner forgets it and makes the object again if it must."""

    object_id: bytes
    node_id: bytes


class CopyAdded(Message, tag=26):
    """A node now has a copy as well."""

    object_id: bytes
    node_id: bytes


class CancelObject(Message, tag=27):
    """To an owner: cancel the call that makes this object of yours."""

    object_id: bytes
    force: bool = False
    recursive: bool = True


# --- agent: worker or driver -> its node agent ----------------------------------------------------------


class RegisterProcess(Message, tag=40):
    """First request of a driver or worker; answered by Registered."""

    rid: int
    address: Address
    pid: int
    kind: str  # "driver" or "worker"
    job_id: bytes
    start_token: int = 0  # given to the worker when the agent asked for it
    env: WorkerEnv | None = None  # a driver's: what workers to have ready for it
    log_to_driver: bool = True


class Registered(Response, tag=41):
    """The node's facts. The arena's descriptor comes over the node's own socket `arena_path`."""

    rid: int
    node_id: bytes
    node_ip: str
    arena_path: str
    arena_size: int
    head: Address
    session_dir: str
    labels: dict[str, str] = {}
    total_resources: dict[str, float] = {}
    listeners_path: str = ""  # where the node hands out listening sockets
    # By what names the node's accelerators are known, by index, where those are not the indices themselves.
    accelerator_ids: dict[str, list[str]] = {}


class LeaseDemand(Message, tag=42):
    """How many workers of a shape the sender wants beyond those it has; replaces the previous demand.

    `shape_id` is the sender's name for the shape, which is sent with the first demand of each id. The
    agent answers with LeaseGrant, LeaseRedirect or LeaseRefused, as often as there is something to say.
    """

    shape_id: int
    wanted: int
    shape: Shape | None = None
    hops: int = 0  # how often the demand has been redirected already


class LeaseGrant(Message, tag=43):
    """A worker is the receiver's until LeaseReturn. Counts as one less wanted."""

    shape_id: int
    lease_id: int
    worker: Address
    instances: dict[str, list[float]] = {}


class LeaseRedirect(Message, tag=44):
    """Ask that node for `count` of them; counts as that many less wanted."""

    shape_id: int
    count: int
    node: Address


class LeaseRefused(Message, tag=45):
    """The shape can never be had (`kind`, `message` as in Failure); the demand is dropped."""

    shape_id: int
    kind: str
    message: str


class LeaseReturn(Message, tag=46):
    """The worker is free again; `reusable` is False if it must not run anything else."""

    lease_id: int
    reusable: bool = True


class LeaseRecall(Message, tag=47):
    """Others wait: finish what is running there and return the lease."""

    lease_id: int


class LeaseLost(Message, tag=48):
    """The leased worker died; counts as returned."""

    lease_id: int
    death: DeathInfo


class Blocked(Message, tag=49):
    """The worker's task (or synchronous actor) waits in get or wait: lend its CPUs to others."""


class Unblocked(Message, tag=50):
    """The wait is over; the CPUs are used again, even if that is more than there are for a while."""


class SlabRequest(Message, tag=51):
    """Room to bump-allocate in: `size` bytes, or at least `min_size` (the object at hand) when short.

    Answered by SpaceGranted once there is some, or Failure(ObjectStoreFullError).
    """

    rid: int
    size: int
    min_size: int


class SpaceGranted(Response, tag=52):
    """Space to write into: at `key` (an offset) of the arena, or all of the file at `path` if not empty.

    Sealed or aborted by `key`. `is_warm`: its pages were touched before (see `Arena.map_writable`).
    """

    rid: int
    key: int
    size: int
    is_slab: bool = False
    is_warm: bool = False
    path: str = ""


class CreateObject(Message, tag=53):
    """Room for one object; answered as SlabRequest."""

    rid: int
    object_id: bytes
    size: int


class SlabRecall(Message, tag=54):
    """agent -> client: the store is short; close this slab when no write is in progress in it."""

    offset: int


class Sealed(Message, tag=55):
    """These objects (id, key, size, pins) are complete. Sent before any message that names them.

    `pins` are counted for the sender at once.
    """

    objects: list[tuple[bytes, int, int, int]]
    owner: Address | None = None  # whose they are, with whom they go; None: the sender's


class PinObject(Message, tag=56):
    """Have the object here, and keep it until Unpin; answered by Pinned or Failure.

    The agent restores it from disk, or pulls it from `nodes` (asking `owner` where else when those
    fail). Failure kinds: ObjectLostError, ObjectFetchTimedOutError.
    """

    rid: int
    object_id: bytes
    size: int
    owner: Address
    nodes: list[bytes]


class Pinned(Response, tag=57):
    """`size` bytes at `offset` of the arena, or of the file at `path` if that is not empty; pinned once."""

    rid: int
    key: int
    offset: int
    size: int
    path: str = ""


class Unpin(Message, tag=58):
    pins: list[tuple[int, int]]  # (key, how many pins)


class FreeObjects(Message, tag=59):
    """The owner dropped these: delete the copies on this node and, for those listed, on `nodes`."""

    object_ids: list[bytes]
    nodes: list[bytes] = []


class AbortObject(Message, tag=60):
    """Give up room that CreateObject had given, unsealed."""

    key: int


class SlabClosed(Message, tag=69):
    """No more writes into this slab; what lies behind its first `used` bytes is free."""

    offset: int
    used: int


class KeepObjects(Message, tag=71):
    """The owner says: the copies on `nodes` (or, without any, here) are the ones to keep from now on.

    Other copies may give way when a store is full; these are spilled instead.
    """

    object_ids: list[bytes]
    nodes: list[bytes] = []


class NodeGone(Message, tag=72):
    """agent -> its processes: a node died, and with it every copy in its store."""

    node_id: bytes


class CancelPin(Message, tag=70):
    """Withdraw the PinObject of this `request` id (its rid); ignored if it was answered."""

    request: int


class BecomeActor(Message, tag=61):
    """agent -> worker: host this actor. Payload: the class definition, then the pickled arguments.

    The worker answers with ActorStarted.
    """

    spec: ActorSpec
    incarnation: int
    resources: dict[str, float]
    instances: dict[str, list[float]]
    class_size: int


class ActorStarted(Message, tag=62):
    """worker -> agent: the constructor returned, or raised (the error blob is the payload)."""

    actor_id: bytes
    incarnation: int
    is_error: bool = False


class ExitWorker(Message, tag=63):
    """agent -> worker: finish what is accepted, then exit. With `force` at once."""

    force: bool = False
    reason: str = ""


class TaskEvents(Message, tag=64):
    """Finished tasks of a process since the last time: how many, and (payload, a msgpack list) which.

    `dropped` of them are not in the payload. `failed` of them raised.
    """

    dropped: int = 0
    finished: int = 0
    failed: int = 0


class MetricsReport(Message, tag=65):
    """The process's metrics (payload: msgpack of `retinue.util.metrics.snapshot()`)."""


class NodeCall(Message, tag=66):
    """Ask the agent ("state", "logs", "stack", "kill", ...); answered by Document. Payload: arguments."""

    rid: int
    what: str
    arguments: dict[str, str] = {}


class LogLines(Message, tag=67):
    """agent -> driver: worker output. Payload: the text; `source` says whose it is."""

    source: str
    is_stderr: bool = False
    job_id: bytes = b""


class WantLogs(Message, tag=73):
    """agent -> agent: a driver here shows its job's output. LogLines come back on this connection."""

    job_id: bytes


class ShowLogs(Message, tag=74):
    """driver -> agent -> other agents: answered by Ok behind all that the job has printed until now."""

    rid: int
    job_id: bytes


class ExpectExit(Message, tag=68):
    """worker -> agent: I exit on purpose (exit_actor, max_calls); not a crash."""

    reason: str


# --- head -------------------------------------------------------------------------------------------------


class NodeInfo(Struct, array_like=True, frozen=True):
    """A node as the head knows it. `address` is its agent's."""

    node_id: bytes
    address: Address
    total: dict[str, float]
    available: dict[str, float]
    labels: dict[str, str] = {}
    alive: bool = True
    draining: bool = False
    pid: int = 0
    hostname: str = ""
    session_dir: str = ""
    waiting: int = 0  # lease demand that does not fit now
    is_head: bool = False
    death_reason: str = ""
    start_time: float = 0.0  # wall clock seconds, as `end_time`: of its agent
    end_time: float = 0.0  # 0 while it lives


class ActorSpec(Struct, array_like=True, frozen=True):
    """Everything needed to make, and make again, an actor. Definitions and arguments are payloads."""

    actor_id: bytes
    job_id: bytes
    owner: Address
    class_name: str
    class_key: bytes
    shape: Shape  # resources while it lives
    placement: dict[str, float]  # resources that the node must have free to place it (Ray: 1 CPU by default)
    name: str = ""
    namespace: str = ""
    detached: bool = False
    max_restarts: int = 0  # -1 = without limit
    max_task_retries: int = 0
    max_concurrency: int = 0  # 0 = not said
    concurrency_groups: dict[str, int] = {}
    is_async: bool = False
    max_pending_calls: int = -1
    allow_out_of_order: bool = False
    methods: str = ""  # JSON of the methods' options, for handles from get_actor
    args_size: int = 0
    args_object: StoredObject | None = None
    dependencies: list[StoredObject] = []


class ActorInfo(Struct, array_like=True, frozen=True):
    """An actor's state: PENDING, ALIVE, RESTARTING or DEAD, and where it is while ALIVE."""

    actor_id: bytes
    state: str
    incarnation: int = 0
    address: Address | None = None
    node_id: bytes = b""
    pid: int = 0
    num_restarts: int = 0
    death: DeathInfo | None = None
    death_cause: str = ""  # for people: why it is DEAD or RESTARTING
    spec: ActorSpec | None = None
    has_error: bool = False  # DEAD because the constructor raised; the error blob is the payload
    error_kind: str = ""  # the class in `retinue.exceptions` that calls get; "" = ActorDiedError


class JobInfo(Struct, array_like=True, frozen=True):
    job_id: bytes
    driver: Address
    pid: int
    entrypoint: str
    namespace: str
    start_time: float  # wall clock
    end_time: float = 0.0
    status: str = "RUNNING"  # RUNNING, SUCCEEDED, FAILED
    runtime_env: str = "{}"
    message: str = ""


class RegisterNode(Message, tag=80):
    """agent -> head, at first and after each new head epoch; answered by NodeAccepted.

    `actors` are those that live on the node with their specs (payload: msgpack list of the
    definitions and arguments of restartable ones), so that a new head learns what the old one knew.
    """

    rid: int
    node: NodeInfo
    actors: list[ActorInfo] = []
    processes: list[bytes] | None = None  # worker ids of its drivers and workers


class NodeAccepted(Response, tag=81):
    rid: int
    epoch: int
    cluster_id: str = ""


class NodeReport(Message, tag=82):
    """agent -> head: what is available now; sent on change, at most every 50 ms, and every second."""

    available: dict[str, float]
    waiting: int = 0
    shapes: list[tuple[dict[str, float], int]] = []  # demand that does not fit
    starts: int = 0  # how many StartActors of this connection `available` has counted in
    recallable: dict[str, float] = {}  # held by leases that an actor's start would have recalled


class ClusterView(Message, tag=83):
    """head -> agents and drivers that asked: nodes that changed (all of them, first).

    `awaits_nodes`: a new head waits for nodes that the last one knew; who is missing may come back. When it
    waits no longer, it sends all of them again.
    """

    nodes: list[NodeInfo]
    full: bool = False
    epoch: int = 0
    awaits_nodes: bool = False


class RegisterJob(Message, tag=84):
    """driver -> head; answered by JobAccepted. The job ends with the connection (and a grace)."""

    rid: int
    job: JobInfo


class JobAccepted(Response, tag=85):
    rid: int
    job_id: bytes
    epoch: int = 0


class NewJobId(Message, tag=86):
    """Answered by Ok(value=the job's number)."""

    rid: int


class FinishJob(Message, tag=87):
    job_id: bytes
    status: str = "SUCCEEDED"
    message: str = ""


class CreateActor(Message, tag=88):
    """Make an actor; the same id again is the same request. Payload: class definition, then arguments.

    Answered by ActorAnswer (PENDING, or the existing one with `get_if_exists`), or Failure
    (ActorAlreadyExistsError). The sender is subscribed to its updates.
    """

    rid: int
    spec: ActorSpec
    class_size: int
    get_if_exists: bool = False


class ActorAnswer(Response, tag=89):
    rid: int
    info: ActorInfo


class FindActor(Message, tag=90):
    """By id, or by name and namespace; answered by ActorAnswer or Failure(ValueError), and subscribed."""

    rid: int
    actor_id: bytes = b""
    name: str = ""
    namespace: str = ""


class ActorUpdate(Message, tag=91):
    """head -> subscribers: the actor's state changed. Payload: the constructor's error blob if it raised."""

    info: ActorInfo


class KillActor(Message, tag=92):
    rid: int
    actor_id: bytes
    no_restart: bool = True


class ReleaseActor(Message, tag=93):
    """owner -> head: no handle is left and all calls are answered; let it end in order."""

    actor_id: bytes


class ListActors(Message, tag=94):
    """Answered by ActorList. `state` "" is all; `named_only` gives those with a name."""

    rid: int
    named_only: bool = False
    namespace: str | None = None
    limit: int = 10_000


class ActorList(Response, tag=95):
    rid: int
    actors: list[ActorInfo]


class ListNodes(Message, tag=96):
    rid: int


class NodeList(Response, tag=97):
    rid: int
    nodes: list[NodeInfo]


class ListJobs(Message, tag=98):
    rid: int


class JobList(Response, tag=99):
    rid: int
    jobs: list[JobInfo]


class KvPut(Message, tag=100):
    """Payload: the value. Answered, once durable, by Ok(value=1 if it was added or replaced)."""

    rid: int
    namespace: str
    key: bytes
    overwrite: bool = True


class KvGet(Message, tag=101):
    """Answered by KvValue."""

    rid: int
    namespace: str
    key: bytes


class KvValue(Response, tag=102):
    """Payload: the value, if `found`."""

    rid: int
    found: bool


class KvDelete(Message, tag=103):
    """Answered by Ok(value=how many)."""

    rid: int
    namespace: str
    key: bytes
    by_prefix: bool = False


class KvKeys(Message, tag=104):
    rid: int
    namespace: str
    prefix: bytes = b""


class KvKeyList(Response, tag=105):
    rid: int
    keys: list[bytes]


class KvWatch(Message, tag=106):
    """Send KvChanged for every change under the prefix, beginning with what there is; answered by Ok."""

    rid: int
    namespace: str
    prefix: bytes


class KvChanged(Message, tag=107):
    """Payload: the new value, unless `deleted`."""

    namespace: str
    key: bytes
    deleted: bool = False


class KvUnwatch(Message, tag=116):
    """Send KvChanged for this prefix no more."""

    namespace: str
    prefix: bytes


class WatchNodes(Message, tag=108):
    """Send ClusterView to this connection, now and on change; answered by Ok."""

    rid: int


class StartActor(Message, tag=109):
    """head -> agent: host it (payload as in CreateActor). Answered by ActorPlaced through ActorProgress."""

    spec: ActorSpec
    incarnation: int
    class_size: int


class ActorProgress(Message, tag=110):
    """agent -> head: ALIVE, REJECTED (no room now), FAILED (constructor raised; payload) or DIED."""

    actor_id: bytes
    incarnation: int
    state: str
    address: Address | None = None
    pid: int = 0
    death: DeathInfo | None = None


class StopActor(Message, tag=111):
    """head -> agent: end the worker that hosts it; with `force` at once, else after accepted calls."""

    actor_id: bytes
    incarnation: int
    force: bool = False
    reason: str = ""


class JobFinished(Message, tag=112):
    """head -> agents: end the job's workers and forget its processes."""

    job_id: bytes


class DrainNode(Message, tag=113):
    rid: int
    node_id: bytes
    reason: str = ""


class Shutdown(Message, tag=114):
    """Stop the cluster (to the head) or the node (to an agent); answered by Ok before it goes."""

    rid: int
    grace_period_s: float = 0.0


class OwnerGone(Message, tag=115):
    """agent -> head: a process died; actors that it owned end, unless detached."""

    worker_id: bytes


# --- doors --------------------------------------------------------------------------------------------------


class DoorCall(Message, tag=130):
    """A direct call of a library (see `core.doors`): answered by DoorReply, or items and then it.

    Payload: the body; with `has_more` its first piece, and DoorItems with the rest follow (`form`
    DOOR_EXCHANGE: the body is a stream of items, all of which follow).
    """

    call_id: int
    door: str
    method: str
    deadline: float = 0.0  # by the receiver's monotonic clock; 0 = none
    request_id: str = ""
    trace: str = ""
    credit: int = 0  # streamed items that may be sent before DoorCredit
    form: int = 0
    has_more: bool = False


DOOR_CALL, DOOR_STREAM, DOOR_EXCHANGE, DOOR_ANSWER = 0, 1, 2, 3


class DoorReply(Message, tag=131):
    """The call is over. `text`: what was raised, for people, if the error blob means nothing here."""

    call_id: int
    status: int = 0
    load: int = 0
    text: str = ""


# The call ran, raised (error blob), was cancelled; none of it ran: the door's own reason, too late, no such
# door.
DOOR_OK, DOOR_ERROR, DOOR_CANCELLED, DOOR_REFUSED, DOOR_LATE, DOOR_UNKNOWN = range(6)


class DoorItem(Message, tag=132):
    """Both ways: an item of a stream, or a piece of one (`kind`). `sizes`: several short ones, joined."""

    call_id: int
    kind: int = 0
    sizes: list[int] | None = None


# DOOR_ITEM: a whole one, or the last piece of one; DOOR_PART: more pieces follow; DOOR_END: no more items.
DOOR_ITEM, DOOR_PART, DOOR_END = 0, 1, 2


class DoorCredit(Message, tag=133):
    """The receiver has taken so much; that much more may be sent."""

    call_id: int
    items: int
    size: int = 0


class DoorCancel(Message, tag=134):
    call_id: int


class DoorAccepted(Message, tag=135):
    """These calls have reached their handlers. Sent before any of their code runs."""

    call_ids: list[int]


class DoorWelcome(Message, tag=136):
    """The first message from the side that was connected to. With `problem` the connection ends."""

    clock: float
    problem: str = ""


class DoorPing(Message, tag=137):
    """Answered by DoorPong; `sent` is the sender's clock, and comes back as it is."""

    sent: float


class DoorPong(Message, tag=138):
    sent: float
    clock: float


class OpenListener(Message, tag=139):
    """To a node's `listeners_path`: a listening TCP socket for the slot `name`, made now or before.

    Answered by ListenerOpened with the descriptor beside it (SCM_RIGHTS), or Failure. It ends with the job
    of the Hello before it, unless `detached`. Port 0: any free one.
    """

    rid: int
    name: str
    host: str
    port: int = 0
    backlog: int = 4096
    detached: bool = False


class ListenerOpened(Response, tag=140):
    rid: int
    host: str
    port: int


class ReleaseListener(Message, tag=141):
    """Close the slot's socket on the node's side; answered by Ok(value=1 if there was one)."""

    rid: int
    name: str


def all_messages() -> tuple[type[Message], ...]:
    """Every message with a tag, for the decoder."""
    found: list[type[Message]] = []
    pending: list[type[Message]] = [Message]
    while pending:
        for cls in pending.pop().__subclasses__():
            pending.append(cls)
            if cls.__struct_config__.tag is not None:
                found.append(cls)
    return tuple(found)
