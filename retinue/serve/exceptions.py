"""What serve raises.

Each class answers whose fault it is (`fault`: "caller", "user code" or "system"), whether the same request
may safely be sent again (`is_retryable`: only where nothing of it was executed), and which HTTP status it
becomes (`http_status`). All can be pickled. Lives here: the classes. Does not: deciding when to raise.
"""

from __future__ import annotations

from typing import Any

from retinue.exceptions import RetinueError, TaskCancelledError


class RetinueServeException(RetinueError):
    """Base of what serve raises on its own account."""

    http_status: int = 500


class BackPressureError(RetinueServeException):
    """Every replica and the queue were full, or the wait would have been too long; nothing was executed.

    `retry_after_s`: when to try again, as far as is known. `http_status` is what the deployment's
    backpressure_config says.
    """

    fault = "caller"
    is_retryable = True
    http_status = 503

    def __init__(
        self,
        num_queued_requests: int = 0,
        max_queued_requests: int = 0,
        status_code: int = 503,
        retry_after_s: float | None = None,
        message: str = "",
    ) -> None:
        super().__init__(num_queued_requests, max_queued_requests, status_code, retry_after_s, message)
        self.num_queued_requests = num_queued_requests
        self.max_queued_requests = max_queued_requests
        self.http_status = self.status_code = status_code
        self.retry_after_s = retry_after_s
        self.message = message or (
            f"the request was refused without being started: {num_queued_requests} requests wait already, "
            f"and max_queued_requests is {max_queued_requests}"
        )

    def __str__(self) -> str:
        return self.message


class RequestCancelledError(RetinueServeException, TaskCancelledError):
    """The request was cancelled by its caller; parts of it may have been executed."""

    fault = "caller"
    http_status = 499

    def __init__(self, request_id: str | None = None) -> None:
        TaskCancelledError.__init__(self, request_id)
        self.args = (request_id,)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"request {self.request_id} was cancelled" if self.request_id else "the request was cancelled"


class DeploymentUnavailableError(RetinueServeException):
    """The deployment takes no requests: it failed to deploy, is ill, or was deleted. Nothing was executed.

    `deployment_id` names it; `reason` says what happened to it.
    """

    is_retryable = True
    http_status = 503

    def __init__(self, deployment_id: object, reason: str = "") -> None:
        super().__init__(deployment_id, reason)
        self.deployment_id = deployment_id
        self.reason = reason

    @property
    def message(self) -> str:
        return f"deployment {self.deployment_id} is unavailable: {self.reason or 'it failed to deploy'}"

    def __str__(self) -> str:
        return self.message


class ReplicaUnavailableError(RetinueServeException):
    """The replica died, or was lost, while it executed the request. Whether the request was carried out is
    unknown, so it is repeated only by who knows that it may be."""

    http_status = 502

    def __init__(self, replica_id: object, reason: str = "") -> None:
        super().__init__(replica_id, reason)
        self.replica_id = replica_id
        self.reason = reason

    @property
    def message(self) -> str:
        return f"replica {self.replica_id} became unavailable: {self.reason or 'it is gone'}"

    def __str__(self) -> str:
        return self.message


class gRPCStatusError(RetinueServeException):
    """User code set a gRPC status on its context, then raised: the status goes to the client with it."""

    fault = "user code"

    def __init__(
        self,
        original_exception: BaseException,
        code: Any = None,
        details: str | None = None,
    ) -> None:
        super().__init__(original_exception, code, details)
        self._original_exception = original_exception
        self._code = code
        self._details = details

    @property
    def original_exception(self) -> BaseException:
        return self._original_exception

    @property
    def grpc_code(self) -> Any:
        """The grpc.StatusCode, or None."""
        return self._code

    @property
    def grpc_details(self) -> str | None:
        return self._details

    def __reduce__(self) -> tuple[Any, ...]:
        return gRPCStatusError, (self._original_exception, self._code, self._details)

    def __str__(self) -> str:
        return str(self._original_exception)
