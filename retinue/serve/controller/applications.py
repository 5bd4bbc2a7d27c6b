"""One application: its deployments, from its spec, and its status.

Lives here: which deployments there are, and in which order they go. Does not: a deployment (`deployments`),
or building an application (`building`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from retinue.serve.autoscaling_options import AutoscalingPolicy
from retinue.serve.controller.checkpoint import ApplicationRecord
from retinue.serve.controller.deployments import ASK_POLICY_EVERY_S, Deployment, Surroundings
from retinue.serve.controller.policies import PolicyRunner
from retinue.serve.controller.statuses import application_status
from retinue.serve.messages import ApplicationSpec, DeploymentSpec, Route
from retinue.serve.routing.names import DeploymentID
from retinue.serve.status_schema import ApplicationStatus

logger = logging.getLogger(__name__)


class App:
    """An application's target and its deployments; also those that it has no more and that still drain."""

    def __init__(self, name: str, around: Surroundings) -> None:
        self.name = name
        self._around = around
        self.spec: ApplicationSpec | None = None
        self.deployments: dict[str, Deployment] = {}  # in the spec's order: callers after what they call
        self.leaving: dict[str, Deployment] = {}
        self.deployed_at = 0.0
        self.is_deleting = False
        self.is_building = False
        self.build_error = ""
        self.source = "imperative"
        self.config = b""
        self._policy: PolicyRunner | None = None  # its autoscaling policy, if it has one
        self._asked_at = 0.0

    # changes

    def deploy(self, spec: ApplicationSpec, *, source: str, config: bytes = b"") -> None:
        """Want this application from now on."""
        deployments: dict[str, Deployment] = {}
        for deployment_spec in spec.deployments:
            known = self.deployments.pop(deployment_spec.name, None) or self.leaving.pop(
                deployment_spec.name, None
            )
            if known is None:
                known = Deployment(self.name, deployment_spec, self._around)
            else:
                known.deploy(deployment_spec)
            deployments[deployment_spec.name] = known
        self.leaving |= self.deployments
        self.deployments = deployments
        self.spec, self.source, self.config = spec, source, config
        self._use_policy()
        self.is_deleting, self.is_building, self.build_error = False, False, ""
        self.deployed_at = time.time()

    def delete(self) -> None:
        self.is_deleting = True

    def recover(self, record: ApplicationRecord, scales: Mapping[str, int | None]) -> None:
        """As the record says; replicas are added by `Deployment.recover`."""
        self.spec, self.deployed_at = record.spec, record.deployed_at
        self.source, self.config, self.build_error = record.source, record.config, record.build_error
        self.is_deleting = record.is_deleting
        for spec in record.spec.deployments if record.spec else ():
            self.deployments[spec.name] = Deployment(
                self.name,
                spec,
                self._around,
                good=record.good.get(spec.name),
                failure=record.failures.get(spec.name, ""),
                scale=scales.get(spec.name),
            )
        for spec in record.removed:
            self.leaving[spec.name] = Deployment(self.name, spec, self._around)
        self._use_policy()

    def record(self, following: ApplicationSpec | None = None) -> ApplicationRecord:
        """What survives the controller. `following`: as it will be once this spec is deployed."""
        good: dict[str, DeploymentSpec] = {}
        failures: dict[str, str] = {}
        removed = [d.spec for d in self.leaving.values()]
        wanted = {d.name: d for d in following.deployments} if following is not None else {}
        for name, deployment in self.deployments.items():
            spec = wanted.get(name)
            if following is not None and spec is None:
                removed.append(deployment.spec)
                continue
            is_new = spec is not None and spec != deployment.spec
            before = deployment.spec_before() if is_new else deployment.good_spec
            if before is not None:
                good[name] = before
            if deployment.rollout.is_failed and following is None:
                failures[name] = deployment.rollout.failure
        return ApplicationRecord(
            name=self.name,
            spec=following or self.spec,
            good=good,
            failures=failures,
            deployed_at=time.time() if following is not None else self.deployed_at,
            is_deleting=self.is_deleting and following is None,
            source=self.source,
            config=self.config,
            build_error="" if following is not None else self.build_error,
            removed=[d for d in removed if d.name not in wanted],
        )

    # its autoscaling policy

    def _use_policy(self) -> None:
        if self._policy is not None:
            self._policy.close()
            self._policy = None
        text = self.spec.autoscaling_policy if self.spec is not None else b""
        if text:
            policy = AutoscalingPolicy.model_validate_json(text)
            self._policy = PolicyRunner(policy, self._policy_answered, self._policy_failed)
        for deployment in self.deployments.values():
            deployment.use_application_policy(self._policy.policy.policy_function if self._policy else "")

    def load_changed(self, now: float) -> None:
        """Ask the policy, with what is known of all deployments that are scaled by load."""
        if self._policy is None or self.is_deleting or now - self._asked_at < ASK_POLICY_EVERY_S:
            return
        contexts = {d.name: d.policy_context(now) for d in self.deployments.values()}
        self._asked_at = now
        self._policy.ask({DeploymentID(name, self.name): c for name, c in contexts.items() if c is not None})

    def _policy_answered(self, answer: Any) -> None:
        try:
            decisions, states = answer
            for deployment_id, wanted in decisions.items():
                self.deployments[deployment_id.name].use_answer(wanted, (states or {}).get(deployment_id))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            self._policy_failed(
                f"an application's policy returns two dicts by deployment id, numbers and states: {error!r}"
            )

    def _policy_failed(self, text: str) -> None:
        logger.warning("application %s: %s", self.name, text)
        for deployment in self.deployments.values():
            deployment.policy_failed(text)

    # the round

    def order_deletions(self) -> None:
        """Callers go before what they call, which their last requests may still need."""
        for deployment in self.leaving.values():
            deployment.delete()
        if self.is_deleting:
            callers_are_there = False
            for deployment in reversed(self.deployments.values()):
                deployment.delete(hold=callers_are_there)
                callers_are_there = callers_are_there or not deployment.is_gone

    def forget_gone(self) -> list[Deployment]:
        """Deployments whose last replica is gone; they are no longer part of it."""
        gone = [d for d in (*self.leaving.values(), *self.deployments.values()) if d.is_gone]
        for deployment in gone:
            if self.leaving.get(deployment.name) is deployment:
                del self.leaving[deployment.name]
        return gone

    @property
    def is_gone(self) -> bool:
        return self.is_deleting and not self.leaving and all(d.is_gone for d in self.deployments.values())

    @property
    def is_fine(self) -> bool:
        """Nothing of it has failed for good: the same target again would change nothing."""
        return not self.build_error and not any(d.rollout.is_failed for d in self.deployments.values())

    def all_deployments(self) -> Iterable[Deployment]:
        return (*self.deployments.values(), *self.leaving.values())

    def status(self) -> tuple[ApplicationStatus, str]:
        return application_status(
            {name: d.status for name, d in self.deployments.items()},
            is_deleting=self.is_deleting,
            is_building=self.is_building,
            build_error=self.build_error,
        )

    def route(self) -> Route | None:
        """Its place in the URL space; None if it has none, or is being deleted."""
        if self.spec is None or self.spec.route_prefix is None or self.is_deleting:
            return None
        ingress = next(d for d in self.spec.deployments if d.name == self.spec.ingress)
        return Route(
            prefix=self.spec.route_prefix,
            app_name=self.name,
            deployment_name=self.spec.ingress,
            is_asgi=ingress.is_asgi,
            status=self.status()[0].value,
        )
