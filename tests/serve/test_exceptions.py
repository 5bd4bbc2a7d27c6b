"""What serve raises: it crosses processes whole, and says what it means."""

import pickle

import pytest

from retinue.exceptions import TaskCancelledError
from retinue.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
    RetinueServeException,
    gRPCStatusError,
)
from retinue.serve.schema_file import ConfigFileError

ALL = [
    RetinueServeException("x"),
    BackPressureError(3, 2, 429, 1.5),
    RequestCancelledError("r1"),
    DeploymentUnavailableError("app#D", "it was deleted"),
    ReplicaUnavailableError("app#D#1"),
    gRPCStatusError(ValueError("no"), None, "details"),
    ConfigFileError("f.yaml", ["f.yaml:1: x", "f.yaml:2: y"]),
]


@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
def test_pickling_keeps_everything(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy).keys() == vars(error).keys()
    assert (copy.http_status, copy.is_retryable, copy.fault) == (
        error.http_status,
        error.is_retryable,
        error.fault,
    )


def test_only_what_executed_nothing_may_be_repeated():
    assert {type(e).__name__ for e in ALL if e.is_retryable} == {
        "BackPressureError",
        "DeploymentUnavailableError",
    }


def test_back_pressure_says_how_full_it_is_and_when_to_come_back():
    error = BackPressureError(3, 2, 429, 1.5)
    assert error.http_status == error.status_code == 429
    assert error.retry_after_s == 1.5
    assert "3 requests wait" in str(error)
    assert "max_queued_requests is 2" in error.message
    assert str(BackPressureError(message="too late")) == "too late"


def test_a_cancelled_request_is_a_cancelled_task_too():
    assert isinstance(RequestCancelledError(), TaskCancelledError)
    assert str(RequestCancelledError("r1")) == "request r1 was cancelled"
    assert str(RequestCancelledError()) == "the request was cancelled"


def test_unavailable_says_why():
    assert str(DeploymentUnavailableError("D")) == "deployment D is unavailable: it failed to deploy"
    assert str(ReplicaUnavailableError("r", "killed")) == "replica r became unavailable: killed"


def test_grpc_status_reads_as_the_users_error():
    error = gRPCStatusError(ValueError("no"), "CODE", "details")
    assert str(error) == "no"
    assert (error.grpc_code, error.grpc_details) == ("CODE", "details")
    assert isinstance(error.original_exception, ValueError)
