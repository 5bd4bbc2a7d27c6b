"""Statuses of deployments and applications."""

from __future__ import annotations

import itertools

import pytest

from retinue.serve.controller.statuses import (
    TRANSITIONS,
    Change,
    DeploymentStatusMachine,
    application_status,
)
from retinue.serve.status_schema import ApplicationStatus, DeploymentStatus, DeploymentStatusTrigger

Status, Trigger = DeploymentStatus, DeploymentStatusTrigger


@pytest.mark.parametrize(
    ("changes", "status", "trigger"),
    [
        ([], "UPDATING", "CONFIG_UPDATE_STARTED"),
        (["SETTLED"], "HEALTHY", "CONFIG_UPDATE_COMPLETED"),
        (["SETTLED", "SETTLED"], "HEALTHY", "CONFIG_UPDATE_COMPLETED"),
        (["START_FAILED"], "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED"),
        (["HEALTH_FAILED"], "DEPLOY_FAILED", "HEALTH_CHECK_FAILED"),
        (["START_FAILED", "SETTLED"], "HEALTHY", "UNSPECIFIED"),
        (["SCALED_UP"], "UPDATING", "CONFIG_UPDATE_STARTED"),
        (["AUTOSCALED_UP"], "UPDATING", "CONFIG_UPDATE_STARTED"),
        (["SETTLED", "SCALED_UP"], "UPSCALING", "CONFIG_UPDATE_STARTED"),
        (["SETTLED", "SCALED_UP", "SETTLED"], "HEALTHY", "UPSCALE_COMPLETED"),
        (["SETTLED", "SCALED_DOWN", "SETTLED"], "HEALTHY", "DOWNSCALE_COMPLETED"),
        (["SETTLED", "AUTOSCALED_UP"], "UPSCALING", "AUTOSCALING"),
        (["SETTLED", "AUTOSCALED_UP", "AUTOSCALED_DOWN"], "DOWNSCALING", "AUTOSCALING"),
        (["SETTLED", "AUTOSCALED_DOWN", "SCALED_UP"], "UPSCALING", "CONFIG_UPDATE_STARTED"),
        (["SETTLED", "SCALED_UP", "START_FAILED"], "UNHEALTHY", "REPLICA_STARTUP_FAILED"),
        (["SETTLED", "HEALTH_FAILED"], "UNHEALTHY", "HEALTH_CHECK_FAILED"),
        (["SETTLED", "HEALTH_FAILED", "SETTLED"], "HEALTHY", "UNSPECIFIED"),
        (["SETTLED", "HEALTH_FAILED", "AUTOSCALED_UP"], "UNHEALTHY", "HEALTH_CHECK_FAILED"),
        (["SETTLED", "DEPLOYED"], "UPDATING", "CONFIG_UPDATE_STARTED"),
        (["SETTLED", "UPDATE_FAILED"], "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED"),
        (["UPDATE_FAILED", "AUTOSCALED_UP"], "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED"),
        (["SETTLED", "DELETED", "HEALTH_FAILED", "SETTLED"], "UPDATING", "DELETING"),
        (["DELETED", "DEPLOYED"], "UPDATING", "CONFIG_UPDATE_STARTED"),
        (["INTERNAL_ERROR"], "UNHEALTHY", "INTERNAL_ERROR"),
    ],
)
def test_a_deployments_status(changes: list[str], status: str, trigger: str) -> None:
    machine = DeploymentStatusMachine()
    for change in changes:
        machine.change(Change(change), "why")
    assert (machine.status, machine.trigger) == (status, trigger)


@pytest.mark.parametrize(("status", "change"), list(itertools.product(Status, Change)))
def test_a_deploy_a_deletion_and_a_failed_update_count_from_everywhere(
    status: DeploymentStatus, change: Change
) -> None:
    machine = DeploymentStatusMachine(status, Trigger.UNSPECIFIED, "before")
    machine.change(change, "after")
    always = {
        Change.DEPLOYED: (Status.UPDATING, Trigger.CONFIG_UPDATE_STARTED),
        Change.DELETED: (Status.UPDATING, Trigger.DELETING),
        Change.UPDATE_FAILED: (Status.DEPLOY_FAILED, Trigger.REPLICA_STARTUP_FAILED),
        Change.INTERNAL_ERROR: (Status.UNHEALTHY, Trigger.INTERNAL_ERROR),
    }
    after = always.get(change) or TRANSITIONS.get((status, change)) or (status, Trigger.UNSPECIFIED)
    assert (machine.status, machine.trigger) == after
    is_change = change in always or (status, change) in TRANSITIONS
    assert machine.message == ("after" if is_change else "before")


def machines(**statuses: str) -> dict[str, DeploymentStatusMachine]:
    return {
        name: DeploymentStatusMachine(Status(text.split()[0]), Trigger(text.split()[1]), "why")
        for name, text in statuses.items()
    }


@pytest.mark.parametrize(
    ("deployments", "status", "message"),
    [
        ({"a": "HEALTHY UNSPECIFIED"}, "RUNNING", ""),
        ({}, "RUNNING", ""),
        ({"a": "HEALTHY UNSPECIFIED", "b": "UPSCALING AUTOSCALING"}, "RUNNING", ""),
        (
            {"a": "HEALTHY UNSPECIFIED", "b": "UPSCALING CONFIG_UPDATE_STARTED"},
            "DEPLOYING",
            "deployment b is not ready: why",
        ),
        (
            {"a": "UPDATING CONFIG_UPDATE_STARTED", "b": "UNHEALTHY HEALTH_CHECK_FAILED"},
            "UNHEALTHY",
            "deployment b is unhealthy: why",
        ),
        (
            {
                "a": "UNHEALTHY HEALTH_CHECK_FAILED",
                "b": "DEPLOY_FAILED REPLICA_STARTUP_FAILED",
                "c": "DEPLOY_FAILED HEALTH_CHECK_FAILED",
            },
            "DEPLOY_FAILED",
            "deployment b (and c) did not start: why",
        ),
    ],
)
def test_the_worst_deployment_decides(deployments: dict[str, str], status: str, message: str) -> None:
    assert application_status(machines(**deployments)) == (status, message)


def test_an_application_that_is_built_or_deleted_says_so() -> None:
    healthy = machines(a="HEALTHY UNSPECIFIED")
    assert application_status(healthy, is_deleting=True)[0] is ApplicationStatus.DELETING
    assert application_status(healthy, is_building=True)[0] is ApplicationStatus.DEPLOYING
    assert application_status(healthy, build_error="no module") == (
        ApplicationStatus.DEPLOY_FAILED,
        "no module",
    )
