"""The status of deployments and applications, as tables of Ray Serve's states and triggers.

Lives here: which status follows which, and an application's from its deployments'. Does not: noticing what
happens (`deployments`), telling it (`details`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from retinue.serve.status_schema import ApplicationStatus, DeploymentStatus, DeploymentStatusTrigger

Status = DeploymentStatus
Trigger = DeploymentStatusTrigger


class Change(StrEnum):
    """What happens to a deployment."""

    SETTLED = "SETTLED"  # every replica that shall run runs, and no other is there
    DEPLOYED = "DEPLOYED"  # another version or other options
    SCALED_UP = "SCALED_UP"  # by the user
    SCALED_DOWN = "SCALED_DOWN"
    AUTOSCALED_UP = "AUTOSCALED_UP"
    AUTOSCALED_DOWN = "AUTOSCALED_DOWN"
    START_FAILED = "START_FAILED"  # often enough to say so
    UPDATE_FAILED = "UPDATE_FAILED"  # the wanted version was given up
    HEALTH_FAILED = "HEALTH_FAILED"  # a replica that ran died or was found ill
    INTERNAL_ERROR = "INTERNAL_ERROR"
    DELETED = "DELETED"


_UPDATING = (Status.UPDATING, Trigger.CONFIG_UPDATE_STARTED)
_UP_BY_USER = (Status.UPSCALING, Trigger.CONFIG_UPDATE_STARTED)
_DOWN_BY_USER = (Status.DOWNSCALING, Trigger.CONFIG_UPDATE_STARTED)
_AUTO_UP = (Status.UPSCALING, Trigger.AUTOSCALING)
_AUTO_DOWN = (Status.DOWNSCALING, Trigger.AUTOSCALING)
_ILL = (Status.UNHEALTHY, Trigger.HEALTH_CHECK_FAILED)
_STARTS_FAIL = (Status.UNHEALTHY, Trigger.REPLICA_STARTUP_FAILED)
_DEPLOY_FAILED = (Status.DEPLOY_FAILED, Trigger.REPLICA_STARTUP_FAILED)
_DEPLOY_ILL = (Status.DEPLOY_FAILED, Trigger.HEALTH_CHECK_FAILED)
_RECOVERED = (Status.HEALTHY, Trigger.UNSPECIFIED)

Next = tuple[DeploymentStatus, DeploymentStatusTrigger]

# From every status.
_ALWAYS: dict[Change, Next] = {
    Change.INTERNAL_ERROR: (Status.UNHEALTHY, Trigger.INTERNAL_ERROR),
    Change.DELETED: (Status.UPDATING, Trigger.DELETING),
    Change.UPDATE_FAILED: _DEPLOY_FAILED,
    Change.DEPLOYED: _UPDATING,
}
_SCALING: dict[Change, Next] = {
    Change.SCALED_UP: _UP_BY_USER,
    Change.SCALED_DOWN: _DOWN_BY_USER,
    Change.AUTOSCALED_UP: _AUTO_UP,
    Change.AUTOSCALED_DOWN: _AUTO_DOWN,
}
_FAILING: dict[Change, Next] = {Change.HEALTH_FAILED: _ILL, Change.START_FAILED: _STARTS_FAIL}

# A pair that is in neither table changes nothing.
TRANSITIONS: dict[tuple[DeploymentStatus, Change], Next] = {
    # An update goes on while the number of replicas changes, and says so first.
    (Status.UPDATING, Change.SETTLED): (Status.HEALTHY, Trigger.CONFIG_UPDATE_COMPLETED),
    (Status.UPDATING, Change.START_FAILED): _DEPLOY_FAILED,
    (Status.UPDATING, Change.HEALTH_FAILED): _DEPLOY_ILL,
    (Status.UPSCALING, Change.SETTLED): (Status.HEALTHY, Trigger.UPSCALE_COMPLETED),
    (Status.DOWNSCALING, Change.SETTLED): (Status.HEALTHY, Trigger.DOWNSCALE_COMPLETED),
    (Status.UNHEALTHY, Change.SETTLED): _RECOVERED,
    (Status.DEPLOY_FAILED, Change.SETTLED): _RECOVERED,
    (Status.DEPLOY_FAILED, Change.START_FAILED): _DEPLOY_FAILED,
    (Status.DEPLOY_FAILED, Change.HEALTH_FAILED): _DEPLOY_ILL,
}
for _status in (Status.HEALTHY, Status.UPSCALING, Status.DOWNSCALING):
    TRANSITIONS |= {(_status, change): after for change, after in (_SCALING | _FAILING).items()}
TRANSITIONS |= {(Status.UNHEALTHY, change): after for change, after in _FAILING.items()}


@dataclass(slots=True)
class DeploymentStatusMachine:
    """One deployment's status. `message` says in words what is wrong or waited for."""

    status: DeploymentStatus = Status.UPDATING
    trigger: DeploymentStatusTrigger = Trigger.CONFIG_UPDATE_STARTED
    message: str = ""

    def change(self, change: Change, message: str = "") -> None:
        is_deleting = self.trigger is Trigger.DELETING and self.status is Status.UPDATING
        after = _ALWAYS.get(change) or TRANSITIONS.get((self.status, change))
        if after is None or (is_deleting and change not in (Change.DELETED, Change.DEPLOYED)):
            return
        self.status, self.trigger = after
        self.message = message

    @property
    def is_settled(self) -> bool:
        return self.status is Status.HEALTHY


def application_status(
    deployments: Mapping[str, DeploymentStatusMachine],
    *,
    is_deleting: bool = False,
    is_building: bool = False,
    build_error: str = "",
) -> tuple[ApplicationStatus, str]:
    """The worst of its deployments' decides; the message names them and says what is wrong with the first."""
    if is_deleting:
        return ApplicationStatus.DELETING, ""
    if build_error:
        return ApplicationStatus.DEPLOY_FAILED, build_error
    failed = [n for n, d in deployments.items() if d.status is Status.DEPLOY_FAILED]
    if failed and not is_building:
        return ApplicationStatus.DEPLOY_FAILED, _told("did not start", failed, deployments)
    if is_building:
        return ApplicationStatus.DEPLOYING, "the application is being built"
    ill = [n for n, d in deployments.items() if d.status is Status.UNHEALTHY]
    if ill:
        return ApplicationStatus.UNHEALTHY, _told("is unhealthy", ill, deployments)
    changing = [
        n for n, d in deployments.items() if not d.is_settled and d.trigger is not Trigger.AUTOSCALING
    ]
    if changing:
        waiting = [n for n in changing if deployments[n].message]
        return ApplicationStatus.DEPLOYING, _told("is not ready", waiting, deployments) if waiting else ""
    return ApplicationStatus.RUNNING, ""


def _told(what: str, names: list[str], deployments: Mapping[str, DeploymentStatusMachine]) -> str:
    others = f" (and {', '.join(names[1:])})" if len(names) > 1 else ""
    message = deployments[names[0]].message
    return f"deployment {names[0]}{others} {what}{': ' if message else ''}{message}"


def slow_start(replicas: Sequence[tuple[str, float]]) -> str:
    """What is said of replicas (id, Unix time of the start) whose constructor has not returned for long."""
    replica_id, since = min(replicas, key=lambda replica: replica[1])
    others = f" and {len(replicas) - 1} more" if len(replicas) > 1 else ""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return f"replica {replica_id}{others}: the constructor has not returned since {clock}"


# The statuses in which no replica can be expected: requests without one fail at once.
HOPELESS = frozenset({Status.DEPLOY_FAILED})
