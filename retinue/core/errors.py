"""What can go wrong, as users see it. `retinue.exceptions` gives these names their public home.

Each class answers whose fault it is (`fault`: "caller", "user code" or "system") and whether the same
call may safely be made again (`is_retryable`: only where nothing was executed, or the loss is of our
making). Lives here: the classes and how they cross a process border. Does not: deciding when to raise.
"""

from __future__ import annotations

import traceback
from typing import Any, ClassVar

PUBLIC_HOME = "retinue.exceptions"


class RetinueError(Exception):
    """Base of everything Retinue raises on its own account."""

    fault: ClassVar[str] = "system"
    is_retryable: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__:
            cls.__module__ = PUBLIC_HOME  # tracebacks show the name that users import


class RetinueSystemError(RetinueError):
    """Retinue itself failed: a process it depends on is gone, or an invariant does not hold."""


class CrossLanguageError(RetinueError):
    """Raised by name only: Retinue runs Python."""


class AuthenticationError(RetinueError):
    """The other side did not prove that it holds the cluster's token."""

    fault = "caller"


class TaskCancelledError(RetinueError):
    """The task was cancelled before it finished; `task_id` (hex) says which."""

    fault = "caller"

    def __init__(self, task_id: str | None = None, message: str = "") -> None:
        self.task_id = task_id
        self.message = message
        super().__init__(task_id, message)

    def __str__(self) -> str:
        return self.message or f"task {self.task_id or 'unknown'} was cancelled"


class UserCodeException(RetinueError):
    """User code called by the runtime (a serializer, a hook) raised."""

    fault = "user code"


class UnserializableException(RetinueError):
    """An exception came back that could not be unpickled here; its text is kept."""

    fault = "user code"

    def __init__(self, serialized: object = None, original_stack_trace: str = "") -> None:
        self.original_stack_trace = original_stack_trace
        super().__init__(serialized, original_stack_trace)


class RetinueTaskError(RetinueError):
    """User code in a task or actor method raised.

    What `get` raises is also an instance of the user's exception type, with `cause` the exception
    itself where it survived the trip and `traceback_str` the remote traceback in any case.
    """

    fault = "user code"

    def __init__(
        self,
        function_name: str = "",
        traceback_str: str = "",
        cause: BaseException | None = None,
        pid: int = 0,
        ip: str = "",
        actor_repr: str | None = None,
        cause_repr: str = "",
    ) -> None:
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self.cause_repr = cause_repr or (safe_repr(cause) if cause is not None else "")
        # Not super(): in a type combined with the user's, that would be the user's __init__.
        Exception.__init__(self, function_name, traceback_str)

    def __str__(self) -> str:
        where = f"{self.function_name}() (pid={self.pid}" + (f", ip={self.ip}" if self.ip else "")
        where += f", actor={self.actor_repr})" if self.actor_repr else ")"
        return f"{where}\n{self.traceback_str.rstrip()}"

    def as_instanceof_cause(self) -> BaseException:
        """This error as an instance of the user's exception type too, so that `except` finds it.

        Falls back to the plain error where the types cannot be combined (a type with a layout of its
        own, or an `__init__` that refuses), which Ray does as well.
        """
        cause = self.cause
        if cause is None or isinstance(cause, RetinueTaskError):
            return self
        if not isinstance(cause, Exception):
            return self  # a SystemExit in a task must not end its caller
        if isinstance(cause, RetinueError):
            return cause  # e.g. a TaskCancelledError or ActorDiedError seen inside the task
        try:
            combined = _combined_type(type(cause))
            error = combined.__new__(combined, *cause.args)
            RetinueTaskError.__init__(
                error,
                self.function_name,
                self.traceback_str,
                cause,
                self.pid,
                self.ip,
                self.actor_repr,
                self.cause_repr,
            )
            error.__dict__.update({k: v for k, v in vars(cause).items() if k not in error.__dict__})
            error.args = cause.args
        except Exception:  # noqa: BLE001 - user classes
            return self  # combining is a courtesy to `except`; the error itself carries everything
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (
            self.function_name,
            self.traceback_str,
            self.cause,
            self.pid,
            self.ip,
            self.actor_repr,
            self.cause_repr,
        )
        return _restore_task_error, fields


def _restore_task_error(*fields: Any) -> BaseException:
    return RetinueTaskError(*fields).as_instanceof_cause()


_combined_types: dict[type[BaseException], type[RetinueTaskError]] = {}


def _combined_type(cause_type: type[BaseException]) -> type[RetinueTaskError]:
    combined = _combined_types.get(cause_type)
    if combined is None:
        name = f"RetinueTaskError({cause_type.__name__})"
        namespace = {
            "__module__": PUBLIC_HOME,
            "__str__": RetinueTaskError.__str__,
            "__reduce__": RetinueTaskError.__reduce__,
        }
        combined = type(name, (RetinueTaskError, cause_type), namespace)
        _combined_types[cause_type] = combined
    return combined


class WorkerCrashedError(RetinueError):
    """The process that ran the task died; the message says which and how."""

    def __init__(self, message: str = "the worker process died while it ran the task") -> None:
        super().__init__(message)


class RetinueActorError(RetinueError):
    """Base of what an actor's state makes impossible. `actor_id` is hex."""

    def __init__(self, message: str = "", actor_id: str | None = None) -> None:
        self.actor_id = actor_id
        self.message = message
        super().__init__(message, actor_id)

    def __str__(self) -> str:
        return self.message or f"actor {self.actor_id} failed"


class ActorDiedError(RetinueActorError):
    """The actor is dead and will not come back; the message says how it died."""


class ActorUnavailableError(RetinueActorError):
    """The actor cannot be reached now (it restarts, or its node is away) but may come back."""

    is_retryable = True


class ActorAlreadyExistsError(ValueError, RetinueError):
    """A live actor has this name in this namespace."""

    fault = "caller"


class ActorHandleNotFoundError(ValueError, RetinueError):
    """The handle is of a cluster that this process is not connected to any more."""

    fault = "caller"


class AsyncioActorExit(RetinueError):
    """Raised inside an async actor's method by `exit_actor()`."""


class PendingCallsLimitExceeded(RetinueError):
    """`max_pending_calls` calls of this handle are unanswered; nothing was sent."""

    fault = "caller"
    is_retryable = True


class GetTimeoutError(RetinueError, TimeoutError):
    """`get` reached its timeout; the objects may still come."""

    fault = "caller"
    is_retryable = True


class ObjectLostError(RetinueError):
    """The object is lost and cannot be made again. `object_ref_hex` names it."""

    reason = "all copies are lost and its task may not be run again"

    def __init__(
        self, object_ref_hex: str = "", owner: str = "", call_site: str = "", message: str = ""
    ) -> None:
        self.object_ref_hex = object_ref_hex
        self.owner = owner
        self.call_site = call_site
        self.message = message
        super().__init__(object_ref_hex, owner, call_site, message)

    def __str__(self) -> str:
        which = f"object {self.object_ref_hex}: " if self.object_ref_hex else ""
        made_by = f" It was made by {self.call_site}." if self.call_site else ""
        return f"{which}{(self.message or self.reason).rstrip('.')}.{made_by}"


class ObjectFetchTimedOutError(ObjectLostError):
    """A copy is known but did not arrive from its node in time."""

    reason = "a copy is known but did not arrive in time"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed while this process still held a reference: a fault of ours."""

    reason = "freed although a reference was held"


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died, and its knowledge of the object with it."""

    reason = "the process that owned it died"


class ObjectReconstructionFailedError(ObjectLostError):
    """The object's task was run again, and failed or was lost every time it may be tried."""

    reason = "running its task again failed"


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand."""

    reason = "freed by hand"


class ObjectStoreFullError(RetinueError):
    """Neither the store nor the spill folder has room; the message names the largest holders."""


class OutOfDiskError(RetinueError):
    """The disk of the spill folder is full."""


class OutOfMemoryError(RetinueError):
    """The worker was ended because memory ran short."""


class NodeDiedError(RetinueError):
    """The node that ran this is gone."""


class RuntimeEnvSetupError(RetinueError):
    """The task's or actor's runtime_env could not be made; the message says which part."""

    fault = "caller"

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(error_message)

    def __str__(self) -> str:
        return f"could not set up runtime_env: {self.error_message}"


class TaskUnschedulableError(RetinueError):
    """No node can ever run the task; the message says what it asks for and what there is."""

    fault = "caller"

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(error_message)

    def __str__(self) -> str:
        return f"the task can never be scheduled: {self.error_message}"


class ActorUnschedulableError(RetinueError):
    """No node can ever host the actor; the message says what it asks for and what there is."""

    fault = "caller"

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(error_message)

    def __str__(self) -> str:
        return f"the actor can never be scheduled: {self.error_message}"


class UnsupportedError(RetinueError, NotImplementedError):
    """A name or option that Ray has and Retinue does not; the message says what to use instead."""

    fault = "caller"


class AbsentNameError(UnsupportedError, AttributeError):
    """A public name that Ray has and Retinue does not: `hasattr` is False for it."""


class InvalidTransitionError(RetinueSystemError):
    """A state machine of ours was asked for a step its table does not have."""


RetinueError.__module__ = PUBLIC_HOME


def safe_repr(value: object) -> str:
    """`repr(value)`, or a stand-in where the user's own `__repr__` raises (e.g. of a half-made instance)."""
    try:
        return repr(value)
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises
        return f"<{type(value).__qualname__} whose repr() raised {type(error).__name__}>"


def format_remote_traceback(error: BaseException, *, skip_frames: int) -> str:
    """The traceback as users want to read it: without the runtime's own first frames."""
    tb = error.__traceback__
    for _ in range(skip_frames):
        if tb is not None and tb.tb_next is not None:
            tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb))
