"""Users' own request routers: which replica a request goes to, by a class of theirs.

    class Prefix(RequestRouter):
        def initialize_state(self, tokens: int) -> None: ...
        async def choose_replicas(self, candidate_replicas, pending_request=None):
            return [[preferred], others]

    @serve.deployment(request_router_config=RequestRouterConfig(
        request_router_class=Prefix, request_router_kwargs={"tokens": 4}))

It lives in every process that sends requests to the deployment, on its routers' loop, so it must not block.
Limits hold all the same: what it prefers gets the request if there is room, else it is asked again, when
something has changed or after a pause.

Lives here: the base class and the mixins. Does not: asking them (`routing.policy`).
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retinue.serve.routing.links import Link
from retinue.serve.routing.names import DeploymentID, ReplicaID

__all__ = [
    "FIFOMixin",
    "LocalityMixin",
    "MultiplexMixin",
    "PendingRequest",
    "PowerOfTwoChoicesRequestRouter",
    "ReplicaID",
    "ReplicaResult",
    "RequestRouter",
    "RunningReplica",
]

MODEL_MATCHING_S = 1.0


@dataclass(frozen=True, slots=True)
class RequestMetadata:
    """What a request says of itself."""

    request_id: str = ""
    internal_request_id: str = ""
    call_method: str = "__call__"
    multiplexed_model_id: str = ""
    session_id: str = ""
    app_name: str = ""
    is_streaming: bool = False


@dataclass(slots=True)
class RoutingContext:
    """What has been tried for a request that waits."""

    tried_same_node: bool = False
    tried_fewest_models: bool = False
    matching_since: float = 0.0
    should_backoff: bool = False


@dataclass(slots=True)
class PendingRequest:
    """A request that waits for a replica. `args` and `kwargs` are those of a handle's call; requests by HTTP
    have none. `created_at` is a reading of `time.time()`."""

    args: list[Any]
    kwargs: dict[str, Any]
    metadata: RequestMetadata
    created_at: float = field(default_factory=time.time)
    routing_context: RoutingContext = field(default_factory=RoutingContext)


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    """A routed request: given to `on_request_routed` as it is sent."""

    replica_id: ReplicaID
    request_id: str


class RunningReplica:
    """A replica that takes requests."""

    def __init__(self, link: Link, deployment_id: DeploymentID) -> None:
        self._link = link
        self._replica_id = ReplicaID(link.info.replica_id.rpartition("#")[2], deployment_id)

    @property
    def replica_id(self) -> ReplicaID:
        return self._replica_id

    @property
    def actor_id(self) -> str:
        """Hex. Asks the head: not for hot paths."""
        import retinue
        from retinue.serve.messages import NAMESPACE

        return str(retinue.get_actor(self._link.info.actor_name, namespace=NAMESPACE)._actor_id.hex())

    @property
    def node_id(self) -> str:
        return self._link.info.node_id

    @property
    def availability_zone(self) -> str | None:
        """Always None: nodes know no zones."""
        return None

    @property
    def multiplexed_model_ids(self) -> set[str]:
        return set(self._link.replica.models)

    @property
    def routing_stats(self) -> dict[str, Any]:
        """What the replica's `record_routing_stats` last returned."""
        return self._link.stats

    @property
    def max_ongoing_requests(self) -> int:
        return self._link.replica.limit

    @property
    def num_ongoing_requests(self) -> int:
        """As far as this process knows."""
        return self._link.replica.load

    def __repr__(self) -> str:
        return f"RunningReplica({self._replica_id})"


class RequestRouter(ABC):
    """Base of users' routers; `choose_replicas` is theirs to write. `initialize_state` gets the
    configuration's `request_router_kwargs`."""

    def __init__(
        self,
        deployment_id: DeploymentID,
        *,
        self_node_id: str = "",
        initial_backoff_s: float = 0.025,
        backoff_multiplier: float = 2.0,
        max_backoff_s: float = 0.5,
        get_curr_time_s: Callable[[], float] = time.time,
    ) -> None:
        self._deployment_id = deployment_id
        self._self_node_id = self_node_id
        self._get_curr_time_s = get_curr_time_s
        self.initial_backoff_s = initial_backoff_s
        self.backoff_multiplier = backoff_multiplier
        self.max_backoff_s = max_backoff_s
        self._replicas: dict[ReplicaID, RunningReplica] = {}

    def initialize_state(self, **kwargs: Any) -> None:  # noqa: B027 - a hook
        """Called once, before any request."""

    @property
    def curr_replicas(self) -> dict[ReplicaID, RunningReplica]:
        """The replicas that take requests now."""
        return self._replicas

    @property
    def app_name(self) -> str:
        return self._deployment_id.app_name

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Other replicas take requests from now on. Overriding it, call it first."""
        self._replicas = {replica.replica_id: replica for replica in replicas}

    def select_available_replicas(
        self, candidates: list[RunningReplica] | None = None
    ) -> list[RunningReplica]:
        """Those that have room, as far as is known here."""
        if candidates is None:
            candidates = list(self._replicas.values())
        return [r for r in candidates if r.num_ongoing_requests < r.max_ongoing_requests]

    @abstractmethod
    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Lists of replicas, the best one first: the request goes to the least busy of the first list in
        which one has room. If none has, this is asked again."""

    def on_request_routed(  # noqa: B027 - a hook
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """The request is on its way there."""

    def on_request_completed(  # noqa: B027 - a hook
        self, replica_id: ReplicaID, internal_request_id: str
    ) -> None:
        """The request has ended, one way or the other."""

    def backoff_s(self, attempt: int) -> float:
        """The pause after an attempt (from 0) that found no room."""
        return float(
            min(self.initial_backoff_s * self.backoff_multiplier ** min(attempt, 64), self.max_backoff_s)
        )


class FIFOMixin:
    """Requests are routed in order of arrival; without it, each as soon as its own replicas have room."""


class LocalityMixin:
    """Prefers replicas on this node."""

    _replicas: dict[ReplicaID, RunningReplica]
    _self_node_id: str

    def apply_locality_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """The replicas to consider: those on this node first, once; then all."""
        if pending_request is None:
            return set(self._replicas)
        context = pending_request.routing_context
        near = {i for i, replica in self._replicas.items() if replica.node_id == self._self_node_id}
        if near and not context.tried_same_node:
            context.tried_same_node = True
            context.should_backoff = False
            return near
        context.should_backoff = True
        return set(self._replicas)

    def rank_replicas_via_locality(self, replicas: list[RunningReplica]) -> list[list[RunningReplica]]:
        """Those on this node, those in its zone (never any), the others."""
        near = [r for r in replicas if r.node_id == self._self_node_id]
        return [near, [], [r for r in replicas if r.node_id != self._self_node_id]]


class MultiplexMixin:
    """Prefers replicas that hold the request's model."""

    _replicas: dict[ReplicaID, RunningReplica]

    def apply_multiplex_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """The replicas to consider: those that hold the model, for a second; those with the fewest; all."""
        if pending_request is None:
            return set(self._replicas)
        context = pending_request.routing_context
        context.should_backoff = True
        now = time.monotonic()
        context.matching_since = context.matching_since or now
        model_id = pending_request.metadata.multiplexed_model_id
        holding = {i for i, r in self._replicas.items() if model_id in r.multiplexed_model_ids}
        if holding and now - context.matching_since < MODEL_MATCHING_S:
            return holding
        if not context.tried_fewest_models:
            context.tried_fewest_models = True
            return {r.replica_id for r in self._with_fewest_models()}
        return set(self._replicas)

    def rank_replicas_via_multiplex(
        self, replicas: list[RunningReplica], multiplexed_model_id: str
    ) -> list[list[RunningReplica]]:
        """Those that hold the model, those with the fewest models, the others."""
        fewest = self._with_fewest_models()
        ranks: list[list[RunningReplica]] = [[], [], []]
        for replica in replicas:
            if multiplexed_model_id in replica.multiplexed_model_ids:
                ranks[0].append(replica)
            else:
                ranks[1 if replica in fewest else 2].append(replica)
        return ranks

    def _with_fewest_models(self) -> list[RunningReplica]:
        counts = {replica: len(replica.multiplexed_model_ids) for replica in self._replicas.values()}
        least = min(counts.values(), default=0)
        return [replica for replica, count in counts.items() if count == least]


class PowerOfTwoChoicesRequestRouter(FIFOMixin, MultiplexMixin, LocalityMixin, RequestRouter):
    """The less busy of two random replicas: those that hold the model first, else those on this node.

    To derive from. As the default it stands for the built-in router, which does the same, and is quicker.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            wanted = self.apply_multiplex_routing(pending_request)
        else:
            wanted = self.apply_locality_routing(pending_request)
        group = [replica for replica in candidate_replicas if replica.replica_id in wanted]
        return [random.sample(group, min(2, len(group)))]
