"""The life of a replica, as a table.

    STARTING --READY--> RUNNING --STOP--> STOPPING --ENDED--> STOPPED
    UPDATING: it runs, and takes on new options.
    RECOVERING: a replica that the controller finds again after its own death, until it has answered.
    PENDING_MIGRATION: its node drains; it serves until another has taken its place.

Lives here: the table. Does not: who causes an event (`replicas`), how many there shall be (`reconciler`).
"""

from __future__ import annotations

from enum import StrEnum

from retinue.exceptions import RetinueSystemError
from retinue.serve.status_schema import ReplicaState


class Event(StrEnum):
    READY = "READY"
    RECONFIGURE = "RECONFIGURE"
    MIGRATE = "MIGRATE"
    STOP = "STOP"
    ENDED = "ENDED"


STARTING, UPDATING, RECOVERING = ReplicaState.STARTING, ReplicaState.UPDATING, ReplicaState.RECOVERING
RUNNING, STOPPING, STOPPED = ReplicaState.RUNNING, ReplicaState.STOPPING, ReplicaState.STOPPED
PENDING_MIGRATION = ReplicaState.PENDING_MIGRATION

TRANSITIONS: dict[tuple[ReplicaState, Event], ReplicaState] = {
    (STARTING, Event.READY): RUNNING,
    (RECOVERING, Event.READY): RUNNING,
    (UPDATING, Event.READY): RUNNING,
    (RUNNING, Event.RECONFIGURE): UPDATING,
    (RUNNING, Event.MIGRATE): PENDING_MIGRATION,
    (STARTING, Event.STOP): STOPPING,
    (RECOVERING, Event.STOP): STOPPING,
    (UPDATING, Event.STOP): STOPPING,
    (RUNNING, Event.STOP): STOPPING,
    (PENDING_MIGRATION, Event.STOP): STOPPING,
    (STARTING, Event.ENDED): STOPPED,
    (RECOVERING, Event.ENDED): STOPPED,
    (UPDATING, Event.ENDED): STOPPED,
    (RUNNING, Event.ENDED): STOPPED,
    (PENDING_MIGRATION, Event.ENDED): STOPPED,
    (STOPPING, Event.ENDED): STOPPED,
}
# Takes requests: it was ready once and has not been told to stop. While it applies a new user_config, too.
SERVING = frozenset({RUNNING, UPDATING, PENDING_MIGRATION})
ENDING = frozenset({STOPPING, STOPPED})
PAST_LENGTH = 16


class InvalidReplicaTransitionError(RetinueSystemError):
    """A replica was told something that cannot happen in its state: a fault of ours."""


class ReplicaLife:
    """One replica's state and how it came to it."""

    def __init__(self, state: ReplicaState = STARTING) -> None:
        self.state = state
        self.past: list[str] = []

    def may(self, event: Event) -> bool:
        return (self.state, event) in TRANSITIONS

    def move(self, event: Event) -> None:
        """Take the step of the table. Raises InvalidReplicaTransitionError if it has none."""
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            past = "; ".join(self.past)
            raise InvalidReplicaTransitionError(f"a replica that is {self.state} has no {event} ({past})")
        self.past.append(f"{self.state} -{event}-> {target}")
        del self.past[:-PAST_LENGTH]
        self.state = target
