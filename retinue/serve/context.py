"""Where code runs: in which request, and in which replica.

The request is a context variable, so that it is right in tasks that a request starts and, as the replica
copies contexts, in its threads. Nested calls take its id, trace and deadline on with them (`handle.py`).

Lives here: those two contexts, and the public questions about them. Does not: setting them (`replica`).
"""

from __future__ import annotations

import contextvars
from typing import Any


class RequestContext:
    """The request that the running code answers; treat it as read-only.

    `route` is the application's prefix (empty for calls by handle), `trace` a W3C traceparent, `deadline` a
    reading of `time.monotonic()` (0: none). `is_cancelled` becomes True once nobody waits for the answer:
    tasks are cancelled then, threads have to ask.

    The replica's own: `head`, what was asked (HttpHead, CallHead or GrpcHead); `began`, when (monotonic);
    `status`, of a streamed HTTP answer; `failure`, the class of what ended a stream.
    """

    __slots__ = (
        "app_name",
        "began",
        "deadline",
        "failure",
        "head",
        "is_cancelled",
        "multiplexed_model_id",
        "request_id",
        "route",
        "session_id",
        "status",
        "trace",
    )

    def __init__(
        self,
        route: str = "",
        request_id: str = "",
        app_name: str = "",
        multiplexed_model_id: str = "",
        session_id: str = "",
        trace: str = "",
        deadline: float = 0.0,
    ) -> None:
        self.route = route
        self.request_id = request_id
        self.app_name = app_name
        self.multiplexed_model_id = multiplexed_model_id
        self.session_id = session_id
        self.trace = trace
        self.deadline = deadline
        self.is_cancelled = False
        self.head: Any = None
        self.began = 0.0
        self.status = 0
        self.failure = ""

    def __repr__(self) -> str:
        fields = f"request_id={self.request_id!r}, route={self.route!r}, app_name={self.app_name!r}"
        return f"RequestContext({fields})"


class _NoRequest(RequestContext):
    """Of code outside of requests. All of it shares this, so nothing can be cancelled by it."""

    __slots__ = ()

    @property
    def is_cancelled(self) -> bool:
        return False

    @is_cancelled.setter
    def is_cancelled(self, value: bool) -> None:
        pass


_NO_REQUEST = _NoRequest()
request_context: contextvars.ContextVar[RequestContext] = contextvars.ContextVar(
    "retinue_serve_request", default=_NO_REQUEST
)
# Of the requests in the batch that the running code computes, in its order.
batch_request_contexts: contextvars.ContextVar[list[RequestContext]] = contextvars.ContextVar(
    "retinue_serve_batch_requests"
)


def get_request_context() -> RequestContext:
    """That of the running request; an empty one outside of requests."""
    return request_context.get()


def get_multiplexed_model_id() -> str:
    """The model id of the running request, as its `serve_multiplexed_model_id` header or the handle's option
    `multiplexed_model_id` gave it; "" if it has none."""
    return request_context.get().multiplexed_model_id


def get_trace_context() -> Any:
    """The trace that the running request belongs to, or None.

    With `opentelemetry` installed its Context, for `tracer.start_as_current_span(..., context=...)`; without
    it the W3C headers as a dict, {"traceparent": ...}.
    """
    trace = request_context.get().trace
    if not trace:
        return None
    carrier = {"traceparent": trace}
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return carrier
    return TraceContextTextMapPropagator().extract(carrier)


class ReplicaContext:
    """The replica that code runs in. `replica_tag` is what is unique in `replica_id` (app#deployment#tag).

    `servable_object`: the instance of the user's class, or its function; None while its constructor runs.
    `rank`: from 0 to `world_size` - 1, among the deployment's replicas.
    """

    def __init__(
        self,
        replica_id: str,
        app_name: str,
        deployment: str,
        servable_object: Any = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.replica_id = replica_id
        self.servable_object = servable_object
        self.rank = rank
        self.world_size = world_size
        self._app_name = app_name
        self._deployment = deployment

    @property
    def app_name(self) -> str:
        return self._app_name

    @property
    def deployment(self) -> str:
        return self._deployment

    @property
    def replica_tag(self) -> str:
        return self.replica_id.rpartition("#")[2]


_replica_context: ReplicaContext | None = None


def set_replica_context(context: ReplicaContext | None) -> None:
    """Say which replica this process is."""
    global _replica_context
    _replica_context = context


def find_replica_context() -> ReplicaContext | None:
    return _replica_context


def replica_tags() -> dict[str, str]:
    """The tags of what is recorded in this process; none if it is no replica."""
    context = _replica_context
    if context is None:
        return {}
    return {
        "application": context.app_name,
        "deployment": context.deployment,
        "replica": context.replica_tag,
    }


def get_replica_context() -> ReplicaContext:
    """The replica that this code runs in: `app_name`, `deployment`, `replica_tag`, `replica_id`,
    `servable_object`, `rank`, `world_size`. Raises RetinueServeException outside of replicas."""
    if _replica_context is None:
        from retinue.serve.exceptions import RetinueServeException

        raise RetinueServeException(
            "get_replica_context() is for code that runs in a replica of a deployment"
        )
    return _replica_context
