"""The exceptions that Retinue raises, under Ray's names with the prefix `Retinue`."""

from typing import Any

from retinue.core.errors import (
    AbsentNameError,
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorHandleNotFoundError,
    ActorUnavailableError,
    ActorUnschedulableError,
    AsyncioActorExit,
    AuthenticationError,
    CrossLanguageError,
    GetTimeoutError,
    InvalidTransitionError,
    NodeDiedError,
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    ReferenceCountingAssertionError,
    RetinueActorError,
    RetinueError,
    RetinueSystemError,
    RetinueTaskError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskUnschedulableError,
    UnserializableException,
    UnsupportedError,
    UserCodeException,
    WorkerCrashedError,
)

__all__ = [
    "AbsentNameError",
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "GetTimeoutError",
    "InvalidTransitionError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "ReferenceCountingAssertionError",
    "RetinueActorError",
    "RetinueError",
    "RetinueSystemError",
    "RetinueTaskError",
    "RuntimeEnvSetupError",
    "TaskCancelledError",
    "TaskUnschedulableError",
    "UnserializableException",
    "UnsupportedError",
    "UserCodeException",
    "WorkerCrashedError",
]


def __getattr__(name: str) -> Any:
    """Say how a name of Ray is spelled here."""
    here = name.replace("Ray", "Retinue", 1)
    if here != name and here in globals():
        raise AbsentNameError(f"retinue.exceptions.{name} is {here} here: retinue.exceptions.{here}")
    raise AttributeError(f"module 'retinue.exceptions' has no attribute {name!r}")
