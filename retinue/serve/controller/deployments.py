"""One deployment: carries out what the reconciler, the roll-out and the autoscaler decide.

Lives here: the deployment's replicas, its status, what routers are told of it. Does not: the decisions, or
the life of a single replica (`replicas`).
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Protocol

from retinue.serve.autoscaling_options import AutoscalingContext
from retinue.serve.controller import placement, releases, rollout
from retinue.serve.controller.checkpoint import ReplicaRecord
from retinue.serve.controller.cluster_view import ClusterView
from retinue.serve.controller.measures import EVENTS
from retinue.serve.controller.policies import PolicyRunner
from retinue.serve.controller.reconciler import Plan, Target, plan, surge_of, unavailable_of
from retinue.serve.controller.releases import Release
from retinue.serve.controller.replica_autoscaling import Autoscaler
from retinue.serve.controller.replica_life import RUNNING, SERVING, STARTING, UPDATING
from retinue.serve.controller.replicas import DeadReplica, Replica
from retinue.serve.controller.statuses import HOPELESS, Change, DeploymentStatusMachine, slow_start
from retinue.serve.messages import DeploymentRouting, DeploymentSpec, encode, routing_key
from retinue.serve.status_schema import ReplicaState

logger = logging.getLogger(__name__)

DEAD_REPLICAS_KEPT = 10
# A replica that is not there after this long may be waiting for a node: the cluster is asked.
ASK_PLACEMENT_AFTER_S = 0.25
ASK_PLACEMENT_EVERY_S = 1.0
ASK_POLICY_EVERY_S = 0.1
SLOW_START_S = float(os.environ.get("RETINUE_SERVE_SLOW_START_S", "30"))  # as Ray Serve's


class Surroundings(Protocol):
    """What a deployment needs of the controller."""

    @property
    def actor_class(self) -> Any: ...
    @property
    def target_capacity(self) -> float | None: ...

    cluster: ClusterView

    def wake(self, deployment: Deployment | None = None) -> None:
        """Have the deployment look at itself again, soon."""

    def wake_at(self, deployment: Deployment, when: float) -> None:
        """The same, at this reading of the monotonic clock."""

    def publish(self, key: bytes, value: bytes | None) -> None: ...
    async def flush(self, key: bytes) -> None: ...
    def save_replica(self, record: ReplicaRecord) -> None: ...
    def forget_replica(self, replica_id: str) -> None: ...
    def save_scale(self, deployment: Deployment, count: int) -> None: ...
    def update_failed(self, deployment: Deployment) -> None: ...
    def new_replica_id(self, deployment: Deployment) -> str: ...


class Deployment:
    """The target and the replicas of one deployment. `reconcile` does one round, and never waits."""

    def __init__(
        self,
        app_name: str,
        spec: DeploymentSpec,
        around: Surroundings,
        *,
        good: DeploymentSpec | None = None,
        failure: str = "",
        scale: int | None = None,
    ) -> None:
        self.app_name = app_name
        self.name = spec.name
        self._around = around
        self._releases: dict[str, Release] = {}
        wanted = self._learn(spec)
        before = self._learn(good) if good is not None else None
        self.rollout = rollout.Rollout(wanted.release_id, limit=0, good=before.release_id if before else None)
        self.status = DeploymentStatusMachine()
        self.replicas: dict[str, Replica] = {}
        self.dead: deque[DeadReplica] = deque(maxlen=DEAD_REPLICAS_KEPT)
        self.is_deleting = False
        self.is_held = False  # being deleted, but others still call it
        self.autoscaler: Autoscaler | None = None
        self._recovered_scale = scale
        self._started = 0
        self._policy: PolicyRunner | None = None
        self._policy_asked_at = 0.0
        self.application_policy = ""
        self.target_count = 0
        self._use_options(now=time.monotonic())
        self.rollout.failures.limit = self._failure_limit()
        if failure:
            self.rollout.fail(failure)
            self.status.change(Change.UPDATE_FAILED, failure)

    # the target

    @property
    def spec(self) -> DeploymentSpec:
        """What was deployed last."""
        return self._releases[self.rollout.wanted].spec

    @property
    def wanted(self) -> Release:
        return self._releases[self.rollout.wanted]

    @property
    def release(self) -> Release:
        """What replicas shall be: the wanted one, or, where it has failed, the one before."""
        return self._releases[self.rollout.target_version]

    @property
    def good_spec(self) -> DeploymentSpec | None:
        """What served before, as long as what is wanted has not proven itself."""
        good = self.rollout.good
        return self._releases[good].spec if good is not None and good != self.rollout.wanted else None

    def spec_before(self) -> DeploymentSpec | None:
        """What goes on serving if the next version fails: the one that serves now, if one does."""
        good = self.rollout.good
        return self._releases[good].spec if good is not None else None

    def deploy(self, spec: DeploymentSpec) -> None:
        """Want this from now on. Raises pydantic.ValidationError before anything changes."""
        if spec == self.spec and not self.rollout.is_failed and not self.is_deleting:
            return
        before, before_count = self.wanted, self.target_count
        wanted = self._learn(spec)
        was_deleting, self.is_deleting, self.is_held = self.is_deleting, False, False
        is_changed = self.rollout.deploy(wanted.release_id, limit=0)
        self._use_options(now=time.monotonic(), before=before)
        self.rollout.failures.limit = self._failure_limit()
        if is_changed or was_deleting:
            self.status.change(Change.DEPLOYED)
        elif self.target_count > before_count:
            self.status.change(Change.SCALED_UP)
        elif self.target_count < before_count:
            self.status.change(Change.SCALED_DOWN)
        self._forget_releases()

    def delete(self, *, hold: bool = False) -> None:
        """Drain and end all replicas; with `hold` not yet, for others still need it."""
        if not self.is_deleting:
            self.is_deleting = True
            self.status.change(Change.DELETED)
        self.is_held = hold

    @property
    def is_gone(self) -> bool:
        return self.is_deleting and not self.replicas

    def use_capacity(self) -> None:
        """`target_capacity` has changed."""
        before = self.target_count
        self._use_options(now=time.monotonic(), before=self.wanted)
        if self.target_count != before:
            self.status.change(Change.SCALED_UP if self.target_count > before else Change.SCALED_DOWN)

    def _learn(self, spec: DeploymentSpec) -> Release:
        release = releases.read(spec)
        self._releases[release.release_id] = release
        return release

    def _forget_releases(self) -> None:
        needed = {
            self.rollout.wanted,
            self.rollout.good,
            *(r.release.release_id for r in self.replicas.values()),
        }
        self._releases = {i: release for i, release in self._releases.items() if i in needed}

    def _use_options(self, *, now: float, before: Release | None = None) -> None:
        config = self.wanted.config
        capacity = self._around.target_capacity
        if config.autoscaling_config is None:
            self.autoscaler = None
            self.target_count = scaled_count(config.num_replicas or 0, capacity)
            return
        if self.autoscaler is None:
            first = self._recovered_scale
            if first is None and before is not None:
                first = self.target_count
            self.autoscaler = Autoscaler(
                self.app_name, self.name, config.autoscaling_config, capacity=capacity, first=first
            )
        else:
            self.autoscaler.use(config.autoscaling_config, capacity=capacity, now=now)
        self.autoscaler.application_policy = self.application_policy
        self.target_count = self.autoscaler.target

    def _failure_limit(self) -> int:
        return rollout.failure_limit(self.wanted.config.max_constructor_retry_count, self.target_count)

    # the round

    def reconcile(self, now: float) -> None:
        """Look at what shall be and what is; do what is missing, and tell."""
        if self.is_deleting:
            self._reconcile_deletion()
        else:
            self._reconcile_replicas(now)
            self._judge()
        self._publish()

    def bury(self) -> None:
        """Take leave of the replicas whose process is gone."""
        for replica in [r for r in self.replicas.values() if r.life.state is ReplicaState.STOPPED]:
            del self.replicas[replica.replica_id]
            self.dead.append(replica.obituary())
            self._around.forget_replica(replica.replica_id)
            if self.autoscaler is not None:
                self.autoscaler.replica_gone(replica.replica_id)

    def _reconcile_deletion(self) -> None:
        if self.is_held:
            return
        for replica in [r for r in self.replicas.values() if not r.is_over]:
            self._stop(replica, "the deployment was deleted")

    def _reconcile_replicas(self, now: float) -> None:
        cluster = self._around.cluster
        self._look_for_room(now)
        todo = plan(self._target(now), [r.status() for r in self.replicas.values()])
        if not todo.is_empty:
            self._carry_out(todo)
        if todo.start:
            self._look_for_room(now)  # nothing else may happen before the next slow round
        if not self.rollout.may_start(now) and self.rollout.failures.not_before > now:
            self._around.wake_at(self, self.rollout.failures.not_before)
        for replica in self.replicas.values():
            node_id = replica.started.node_id if replica.started else ""
            if node_id in cluster.draining and replica.life.state is RUNNING:
                replica.migrate()

    def _target(self, now: float) -> Target:
        release = self.release
        config = release.config
        cluster = self._around.cluster
        per_node = config.max_replicas_per_node
        return Target(
            version=release.version,
            num_replicas=self.target_count,
            config_id=release.config_id,
            max_surge=surge_of(self.target_count, config.max_surge_percent),
            max_unavailable=unavailable_of(self.target_count, config.rolling_update_percentage),
            may_start=self.rollout.may_start(now),
            may_trade=self._may_trade(),
            max_alive=per_node * max(1, len(cluster.nodes)) if per_node else None,
        )

    def _may_trade(self) -> bool:
        """Stopping an old replica helps only if what it holds is what is missing."""
        resources = self._around.cluster.resources
        old = [
            r for r in self.replicas.values() if r.release.version != self.release.version and not r.is_over
        ]
        if resources is None or not old:
            return False
        return placement.makes_room(self.release.resources, old[0].release.resources, resources)

    def _look_for_room(self, now: float) -> None:
        """Which replicas that are starting wait for a node?"""
        cluster = self._around.cluster
        starting = [r for r in self.replicas.values() if r.life.state is STARTING]
        if not starting:
            return
        for replica in starting:
            replica.is_unplaced = replica.actor_name in cluster.unplaced
        next_look = min(r.began_at for r in starting) + ASK_PLACEMENT_AFTER_S
        cluster.look_at(next_look if next_look > now else max(now, cluster.looked_at + ASK_PLACEMENT_EVERY_S))

    def _carry_out(self, todo: Plan) -> None:
        for replica_id in todo.stop:
            replica = self.replicas[replica_id]
            is_old = replica.release.version != self.release.version
            self._stop(replica, "replaced by another version" if is_old else "fewer replicas are wanted")
        for replica_id in todo.reconfigure:
            self.replicas[replica_id].reconfigure(self.release, self.target_count)
        for _ in range(todo.start):
            self._start_one()

    def _start_one(self) -> None:
        self._started += 1
        node_id = self._choose_node()
        replica = self._add(self._around.new_replica_id(self), self.release, self._free_rank(), node_id)
        replica.start(self.target_count)
        self._around.save_replica(replica.record())

    def _choose_node(self) -> str:
        """Only a limit per node needs that; else the scheduler does it better."""
        if self.release.config.max_replicas_per_node is None:
            return ""
        cluster = self._around.cluster
        totals = cluster.resources.nodes if cluster.resources is not None else {}
        taken = Counter(r.node_id for r in self.replicas.values() if r.life.state is not ReplicaState.STOPPED)
        nodes = [n for n in cluster.nodes if n not in cluster.draining]
        return placement.emptiest(nodes, taken, self.release.resources, totals)

    def _add(self, replica_id: str, release: Release, rank: int, node_id: str = "") -> Replica:
        replica = self.replicas[replica_id] = Replica(
            replica_id,
            self.app_name,
            release,
            rank=rank,
            age=self._started,
            actor_class=self._around.actor_class,
            on_change=self._replica_changed,
            wanted_node=node_id,
        )
        return replica

    def recover(self, record: ReplicaRecord) -> bool:
        """Take a replica of the controller's last life back. False if it cannot be one of ours."""
        release = self._releases.get(releases.release_id(record.version, record.config_id))
        if release is None or record.started is None:
            return False
        self._started += 1
        if release is self.wanted and self.rollout.good is None:
            self.rollout.good = release.release_id  # it has run, so it has proven itself
        self._add(record.replica_id, release, record.rank).recover(record)
        return True

    def _free_rank(self) -> int:
        # Of this version: a new replica has the rank of the old one that it takes the place of.
        version = self.release.version
        taken = {r.rank for r in self.replicas.values() if not r.is_over and r.release.version == version}
        return next(rank for rank in range(len(taken) + 1) if rank not in taken)

    def _stop(self, replica: Replica, reason: str) -> None:
        logger.info("replica %s stops: %s", replica.replica_id, reason)
        key = routing_key(self.app_name, self.name)
        replica.stop(reason, unpublished=lambda: self._around.flush(key))

    # what replicas tell

    def _replica_changed(self, replica: Replica) -> None:
        now = time.monotonic()
        state = replica.life.state
        logger.info(
            "replica %s is %s%s", replica.replica_id, state, f": {replica.reason}" if replica.reason else ""
        )
        if replica.failed_to and not self.is_deleting:
            self._replica_failed(replica, now)
        elif state is RUNNING:
            self.rollout.replica_ready(replica.release.release_id)
            self._around.save_replica(replica.record())
        self._around.wake(self)

    def _replica_failed(self, replica: Replica, now: float) -> None:
        what, replica.failed_to = replica.failed_to, ""
        if what == "reconfigure":
            self._reconfigure_failed(replica)
            return
        told = f"replica {replica.replica_id} failed to {what}: {replica.reason}"
        has_given_up = self.rollout.replica_failed(replica.release.release_id, told, now)
        if has_given_up:
            self._give_up(told)
        elif what == "start":
            if not self.rollout.is_updating:
                self.status.change(Change.START_FAILED, told)
            self.status.message = f"{told}\n{self._retry_text(now)}"
        else:
            self.status.change(Change.HEALTH_FAILED, told)

    def _retry_text(self, now: float) -> str:
        failures = self.rollout.failures
        wait_s = max(0.0, failures.not_before - now)
        of = f" of {failures.limit}" if self.rollout.is_updating else ""
        return f"start {failures.count}{of} failed; the next in {wait_s:.2g} s"

    def _reconfigure_failed(self, replica: Replica) -> None:
        told = f"replica {replica.replica_id} refused its new options: {replica.reason}"
        replica.reason = ""
        if self.rollout.is_updating:
            self.rollout.fail(told)
            self._give_up(told)
        # What it has in it now is unknown: another takes its place.
        self._stop(replica, told)

    def _give_up(self, reason: str) -> None:
        failures = self.rollout.failures
        kept = self.rollout.good is not None
        before = "the version before goes on serving" if kept else "nothing was deployed before it"
        text = (
            f"the deployment failed after {failures.count} attempts, and {before}. The last failure: {reason}"
        )
        self.status.change(Change.UPDATE_FAILED, text)
        self.rollout.failure = text
        self._around.update_failed(self)

    def _judge(self) -> None:
        """Set the status by what there is."""
        alive = [r for r in self.replicas.values() if not r.is_over]
        release = self.release
        waiting = [r for r in alive if r.is_unplaced]
        is_complete = (
            len(self.replicas) == self.target_count
            and all(r.life.state is RUNNING for r in alive)
            and all(r.release.release_id == release.release_id for r in alive)
        )
        if is_complete and not self.rollout.is_failed:
            self.rollout.completed()
            self._forget_releases()
            if not self.status.is_settled:
                self.status.change(Change.SETTLED)
            self._renumber(alive)
        elif waiting and self._around.cluster.resources is not None:
            self.status.message = placement.explain(
                release.resources, len(waiting), self._around.cluster.resources
            )
        else:
            self._look_for_slow(alive)

    def _look_for_slow(self, alive: list[Replica]) -> None:
        """A constructor that takes long is told of: it may load a large model, or hang."""
        now = time.monotonic()
        starting = [r for r in alive if r.life.state is STARTING and not r.is_unplaced]
        slow = [r for r in starting if now >= r.began_at + SLOW_START_S]
        if slow:
            self.status.message = slow_start([(r.replica_id, r.start_time_s) for r in slow])
        elif starting:
            self._around.wake_at(self, min(r.began_at for r in starting) + SLOW_START_S)

    def _renumber(self, alive: list[Replica]) -> None:
        """Ranks are 0 to n-1, and every replica knows how many there are."""
        for rank, replica in enumerate(sorted(alive, key=lambda r: (r.rank, r.age))):
            if (replica.rank, replica.world_size) != (rank, len(alive)):
                replica.tell_rank(rank, len(alive))
                self._around.save_replica(replica.record())

    # what routers hear

    def routing(self) -> DeploymentRouting:
        config = self.release.config
        router = config.request_router_config
        serving = [r for r in self.replicas.values() if r.started is not None and r.life.state in _ROUTED]
        is_hopeless = self.status.status in HOPELESS and not serving
        return DeploymentRouting(
            app_name=self.app_name,
            deployment_name=self.name,
            replicas=[r.info() for r in sorted(serving, key=lambda r: r.age)],
            max_queued_requests=config.max_queued_requests,
            max_queue_wait_s=config.max_queue_wait_s,
            backpressure_status=config.backpressure_config.status_code,
            backpressure_retry_after_s=config.backpressure_config.retry_after_s,
            router="" if router.is_default_request_router() else router.model_dump_json(),
            problem=self.status.message if is_hopeless else "",
            is_deleted=self.is_deleting and not self.is_held,
            version=self.release.version,
        )

    def _publish(self) -> None:
        self._around.publish(routing_key(self.app_name, self.name), encode(self.routing()))

    # load

    def load_changed(self, now: float) -> None:
        """Decide by the load; called on every report, and when a delay has passed."""
        if self.autoscaler is None or self.is_deleting:
            return
        running = [r.replica_id for r in self.replicas.values() if r.life.state in SERVING]
        if not self.autoscaler.application_policy and self.autoscaler.has_users_policy:
            self._ask_policy(self.autoscaler.context(running, now), now)
        before = self.target_count
        decision = self.autoscaler.decide(running, now)
        if decision is not None and decision != before:
            self.target_count = decision
            EVENTS.scaled((self.app_name, self.name), before, decision, self._scaling_reason(before))
            self.status.change(Change.AUTOSCALED_UP if decision > before else Change.AUTOSCALED_DOWN)
            self.status.message = self.autoscaler.last_reason
            self._around.save_scale(self, decision)
            self._around.wake(self)
        following = self.autoscaler.next_decision_at(now)
        if following is not None:
            self._around.wake_at(self, following)

    def _scaling_reason(self, before: int) -> str:
        assert self.autoscaler is not None
        if before == 0:
            return "first_request"
        is_default = self.autoscaler.config.policy.is_default_policy_function()
        return "load" if is_default else "policy"

    def _ask_policy(self, context: AutoscalingContext, now: float) -> None:
        """At most once in a while, as its answer makes this look at the load again."""
        assert self.autoscaler is not None
        policy = self.autoscaler.config.policy
        if self._policy is None or self._policy.policy != policy:
            self._forget_policy()
            self._policy = PolicyRunner(policy, self._policy_answered, self._policy_failed)
        if now - self._policy_asked_at >= ASK_POLICY_EVERY_S:
            self._policy_asked_at = now
            self._policy.ask(context)

    def _policy_answered(self, answer: Any) -> None:
        try:
            wanted, state = answer
            self.use_answer(wanted, state)
        except (TypeError, ValueError) as error:
            self._policy_failed(f"a policy returns (number of replicas, state): {error}")

    def use_answer(self, wanted: float, state: Mapping[str, Any] | None) -> None:
        """What a policy, the deployment's or the application's, wants. Raises TypeError, ValueError."""
        if self.autoscaler is not None:
            self.autoscaler.answered(wanted, state)
            self.load_changed(time.monotonic())

    def _policy_failed(self, text: str) -> None:
        logger.warning("deployment %s of %s: %s", self.name, self.app_name, text)
        self.policy_failed(text)

    def _forget_policy(self) -> None:
        if self._policy is not None:
            self._policy.close()
            self._policy = None

    def use_application_policy(self, name: str) -> None:
        """The application's policy decides from now on; "": the deployment's own does."""
        self.application_policy = name
        if self.autoscaler is not None:
            self.autoscaler.application_policy = name

    def policy_failed(self, text: str) -> None:
        """The application's policy did."""
        if self.autoscaler is not None:
            self.autoscaler.policy_failed(text)

    def policy_context(self, now: float) -> AutoscalingContext | None:
        """For the application's policy; None: this deployment is not scaled by load."""
        if self.autoscaler is None or self.is_deleting:
            return None
        self.autoscaler.load.forget_silent(now)
        running = [r.replica_id for r in self.replicas.values() if r.life.state in SERVING]
        return self.autoscaler.context(running, now)

    def internal_error(self, text: str) -> None:
        """A round failed, which is a fault of ours; the next one tries again."""
        self.status.change(Change.INTERNAL_ERROR, text)

    @property
    def docs_path(self) -> str:
        """Where its API is documented: as its replicas say, else as its code does."""
        told = (r.started.docs_path for r in self.replicas.values() if r.started is not None)
        return next((path for path in told if path), self.spec.docs_path)

    def replica_states(self) -> dict[str, int]:
        return dict(Counter(r.life.state.value for r in self.replicas.values()))

    async def close(self) -> None:
        self._forget_policy()
        for replica in self.replicas.values():
            await replica.close()


# While the controller finds them again, routers go on with the replicas that they know.
_ROUTED = SERVING | {ReplicaState.RECOVERING, UPDATING}


def scaled_count(count: int, capacity: float | None) -> int:
    """A number of replicas at a target capacity (percent; None: all): rounded half up, but not to zero."""
    if capacity is None or count == 0:
        return count
    if capacity == 0:
        return 0
    return max(1, int(count * capacity / 100 + 0.5))
