"""What crosses processes in serve: between routers, replicas, proxies and the controller.

A *body* is what a direct call carries: a head (one message of this module) and raw bytes behind it. Heads
evolve by fields with defaults, so that old and new processes can talk during an update.

Lives here: names of doors and keys, heads, how a body is put together. Does not: who sends what when.
"""

from __future__ import annotations

from struct import Struct as Packer
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from retinue.core.doors import Address

NAMESPACE = "serve"  # of the actors and of the key-value table
CONTROLLER_NAME = "SERVE_CONTROLLER_ACTOR"
PROXY_NAME_PREFIX = "SERVE_PROXY_ACTOR-"

REPLICA_DOOR = "serve.replica"
CONTROLLER_DOOR = "serve.controller"

# Keys of the key-value table. The controller alone writes them; proxies and routers watch them, and go on
# with what they last saw while the controller, or the head, is away.
CONTROLLER_KEY = b"controller"  # msgpack of ControllerInfo
ROUTES_KEY = b"routes"  # msgpack of RouteTable
ROUTING_PREFIX = b"routing/"  # see `routing_key`; msgpack of DeploymentRouting

# Reasons that a replica gives with DoorRefusedError; nothing was executed.
REFUSED_FULL = b"full"  # a notice of a free slot follows on the caller's `events` stream
REFUSED_DRAINING = b"draining"


def routing_key(app_name: str, deployment_name: str) -> bytes:
    """The key under which a deployment's DeploymentRouting is kept."""
    return ROUTING_PREFIX + f"{app_name}/{deployment_name}".encode()


# --- what the controller publishes


class ControllerInfo(Struct, frozen=True):
    """Where the controller's door is. A new incarnation of it publishes itself again."""

    address: Address


class ReplicaInfo(Struct, frozen=True):
    """A replica that takes requests. `replica_id` is unique in the cluster: `app#deployment#random`."""

    replica_id: str
    address: Address
    node_id: str
    max_ongoing_requests: int
    actor_name: str = ""


class DeploymentRouting(Struct, frozen=True):
    """All that a router needs to know of one deployment.

    `replicas` empty and `is_deleted` False: none is ready (yet), or it is scaled to zero; requests wait.
    `problem`: why no replica can be expected (DEPLOY_FAILED, UNHEALTHY); then requests without a replica
    fail with it at once. `max_queued_requests` is per router; -1: unlimited. `max_queue_wait_s`: requests
    whose estimated wait is longer are refused at once; None: only by number. `router`: pickled-free
    description of a user's request router: JSON of RequestRouterConfig ("" for the built-in).
    """

    app_name: str
    deployment_name: str
    replicas: list[ReplicaInfo] = []
    max_queued_requests: int = 1000
    max_queue_wait_s: float | None = None
    backpressure_status: int = 503
    backpressure_retry_after_s: float | None = None
    router: str = ""
    problem: str = ""
    is_deleted: bool = False
    version: str = ""


class Route(Struct, frozen=True):
    """An application's place in the URL space. `prefix` begins with "/" and ends with none but its own."""

    prefix: str
    app_name: str
    deployment_name: str  # its ingress
    is_asgi: bool = False  # the ingress is an ASGI app: root_path is the prefix
    request_timeout_s: float | None = None  # None: the proxy's own
    status: str = "RUNNING"  # ApplicationStatus


class RouteTable(Struct, frozen=True):
    routes: list[Route] = []
    draining_nodes: list[str] = []


# --- requests

# Methods of a replica's door:
#   ask("http")        body: HttpHead | request body -> HttpResponseHead | body; or, streamed, a first item
#                      of head | first bytes, then items of raw body bytes
#   exchange("http")   items in: HttpHead | first bytes, then raw body bytes; items out: an empty one when it
#                      is accepted (nothing is sent to another replica from there on), then as ask, streamed
#   exchange("websocket")  items in: HttpHead, then msgpack of ASGI messages (dicts); out: the same
#   call("handle")     body: CallHead | payload -> payload (a serialized value)
#   stream("handle")   body: CallHead | payload -> items, each a payload
#   call("grpc"), stream("grpc")  body: GrpcHead | request message -> GRPC_MESSAGE and the message, or
#                      GRPC_HEAD and GrpcResponseHead | message; in a stream a head has no message
#   exchange("grpc")   items in: GrpcHead, then request messages; items out: an empty one when user code has
#                      begun, then as with stream
#   call("handle:all") as call("handle"), past the limit: a handle's broadcast. Neither admitted nor counted
#   stream("events")   -> msgpack of ReplicaEvent, for as long as the router lives
#   call("leave")      body: b"" -> b"": the router has no waiting requests any more; no more notices, and
#                      what is held for it is free. Neither admitted nor counted (see routing.admission)
#   call("waits")      body: AGE -> b"": so long the router's oldest request has waited (minus infinity: none
#                      does). Neither admitted nor counted
# Methods of the controller's door:
#   call("router_stats")  body: msgpack of RouterStats -> b""
#   call("replica_stats") body: msgpack of ReplicaStats -> b""


AGE = Packer("<d")  # seconds


class HttpHead(Struct, array_like=True, gc=False):
    """A request as it came, for the replica. `path` is the whole path, decoded; `prefix` the route's."""

    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    prefix: str = ""
    root_path: str = ""
    scheme: str = "http"
    http_version: str = "1.1"
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    model_id: str = ""
    session_id: str = ""
    subprotocols: list[str] = []
    ignores_disconnect: bool = False  # x-request-disconnect-disabled
    shows_errors: bool = False  # the client may see tracebacks


class HttpResponseHead(Struct, array_like=True, gc=False):
    status: int
    headers: list[tuple[bytes, bytes]]


class CallHead(Struct, array_like=True, gc=False):
    """A call of a deployment's method through a handle. `blobs`: sizes of values that follow the pickled
    arguments, for the placeholders among these (results of other calls, passed on undecoded)."""

    method: str = "__call__"
    model_id: str = ""
    session_id: str = ""
    route: str = ""
    app_name: str = ""  # of the caller, for logs
    args_size: int = -1  # -1: the whole payload
    blobs: list[int] = []


class GrpcHead(Struct, array_like=True, gc=False):
    """A gRPC call. `method` is the full name, /package.Service/Method; `servicer` the import path of the
    function that registered it."""

    method: str
    metadata: list[tuple[str, Any]] = []  # str; bytes where the key ends in -bin
    model_id: str = ""
    session_id: str = ""
    peer: str = ""
    servicer: str = ""
    route: str = ""
    ignores_disconnect: bool = False


# First bytes of what answers a gRPC call.
GRPC_MESSAGE = b"\0"
GRPC_HEAD = b"\1"


class GrpcResponseHead(Struct, array_like=True, gc=False):
    """What user code set on its context, or the status of its failure; with the response, or as the last item
    of a stream (and the first, if there is a compression)."""

    code: int = 0
    details: str = ""
    trailing_metadata: list[tuple[str, Any]] = []
    compression: int = 0


# --- what a replica tells the routers that are connected to it

EVENT_SLOT = 0  # a slot is free, and held for this router for 100 ms
EVENT_MODELS = 1  # the multiplexed models that it holds, and loads
EVENT_DRAINING = 2  # send nothing more; what runs is finished
EVENT_ROUTING_STATS = 3  # what the user's record_routing_stats returned


class ReplicaEvent(Struct, array_like=True, gc=False):
    kind: int
    model_ids: list[str] = []
    loading_model_ids: list[str] = []
    stats: dict[str, Any] = {}
    max_ongoing_requests: int = 0


# --- what routers and replicas tell the controller


class RouterStats(Struct, array_like=True, gc=False):
    """Requests of one router to one deployment. Sent when the queue stops being empty, and each interval
    while anything is queued or ongoing, and once more when nothing is."""

    router_id: str
    app_name: str
    deployment_name: str
    queued: int
    ongoing: int
    node_id: str = ""
    source: str = ""  # "proxy", or the replica id or driver whose handle it is


class ReplicaStats(Struct, array_like=True, gc=False):
    """`ongoing`: now; `custom`: what the user's record_autoscaling_stats returned."""

    replica_id: str
    ongoing: int
    custom: dict[str, float] = {}


class ReplicaStarted(Struct, frozen=True):
    """What a replica says of itself once its constructor has returned and its door is open."""

    address: Address
    node_id: str
    pid: int
    is_asgi: bool = False
    docs_path: str = ""
    log_file: str = ""
    model_ids: list[str] = []


# --- what is deployed


class DeploymentSpec(Struct, frozen=True):
    """One deployment of an application, ready to be started anywhere.

    `config`: JSON of config.DeploymentConfig. `definition`: cloudpickle of the class or function;
    `init_args`: cloudpickle of (args, kwargs), handles of other deployments among them. `actor_options`: JSON
    of the replica actors' options (num_cpus, num_gpus, memory, resources, runtime_env, ...). `version`:
    replicas of another version are replaced; a hash of what cannot be changed in place. `sys_path`: put
    before the replica's own, so that the user's modules are found.
    """

    name: str
    config: bytes
    definition: bytes
    init_args: bytes
    actor_options: bytes = b"{}"
    version: str = ""
    is_asgi: bool = False
    is_function: bool = False
    sys_path: list[str] = []
    preload: list[str] = []
    docs_path: str = ""


class ApplicationSpec(Struct, frozen=True):
    """An application, built. `config`: JSON of its ServeApplicationSchema if it came from a config file.
    `logging_config`: JSON, or empty. `autoscaling_policy`: JSON of an AutoscalingPolicy for all of it, or
    empty."""

    name: str
    route_prefix: str | None
    ingress: str
    deployments: list[DeploymentSpec]
    config: bytes = b""
    logging_config: bytes = b""
    external_scaler_enabled: bool = False
    autoscaling_policy: bytes = b""


# --- bodies

_length = Packer("<I")
_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}
H = TypeVar("H")


def pack(head: Struct, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """A body: the length of the head, the head, the payload."""
    encoded = _encode(head)
    return b"".join((_length.pack(len(encoded)), encoded, payload))


def unpack(kind: type[H], body: bytes | memoryview) -> tuple[H, memoryview]:
    """The head and a view of the payload of a body that `pack` made.

    Raises msgspec.DecodeError (a ValueError) for what is none.
    """
    view = memoryview(body)
    if len(view) < 4:
        raise msgspec.DecodeError(f"a body of {len(view)} bytes has no head")
    end = 4 + _length.unpack_from(view)[0]
    return decode(kind, view[4:end]), view[end:]


def status_of(reply: bytes) -> int:
    """The status of a body that begins with an HttpResponseHead, without decoding it: 0.1 us."""
    first = reply[5]
    if first == 0xCC:  # msgpack's integers of one and two bytes
        return reply[6]
    return reply[6] << 8 | reply[7] if first == 0xCD else first


def encode(message: Struct) -> bytes:
    return _encode(message)


def decode(kind: type[H], data: bytes | memoryview) -> H:
    """Raises msgspec.DecodeError if the data is no `kind`."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder.decode(data)  # type: ignore[no-any-return]
