"""`get_runtime_context()`: what the code that asks is part of.

Lives here: reading the facts of this process and of the running call. Does not: setting them.
"""

from __future__ import annotations

import json
import os
from typing import Any

from retinue.core.client.runtime import Runtime
from retinue.core.current import get_runtime
from retinue.core.runtime_env import RuntimeEnv
from retinue.core.worker import context


class RuntimeContext:
    """Ids are hex strings, or None where there is no such thing (an actor id outside of actors)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def get_job_id(self) -> str:
        return self._runtime.job_id.hex()

    def get_node_id(self) -> str:
        return self._runtime.node_id.hex()

    def get_worker_id(self) -> str:
        return self._runtime.address.worker_id.hex()

    def get_task_id(self) -> str | None:
        running = context.running.get()
        return running.task_id.hex() if running is not None else None

    def get_task_name(self) -> str | None:
        running = context.running.get()
        return running.name if running is not None else None

    def get_task_function_name(self) -> str | None:
        running = context.running.get()
        return running.function_name if running is not None else None

    def get_actor_id(self) -> str | None:
        facts = context.facts
        return facts.actor_spec.actor_id.hex() if facts is not None and facts.actor_spec is not None else None

    def get_actor_name(self) -> str | None:
        facts = context.facts
        return facts.actor_spec.name if facts is not None and facts.actor_spec is not None else None

    def get_placement_group_id(self) -> str | None:
        """Always None: nothing runs in a placement group yet."""
        return None

    @property
    def namespace(self) -> str:
        """Where named actors are looked up."""
        return self._runtime.worker_env.namespace

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor has been restarted. Raises RuntimeError outside of actors."""
        facts = context.facts
        if facts is None or facts.actor_spec is None:
            raise RuntimeError("was_current_actor_reconstructed is for actors")
        return facts.incarnation > 0

    @property
    def current_actor(self) -> Any:
        """A handle (that does not count) of the actor that this runs in. Raises RuntimeError elsewhere."""
        from retinue.core.actor import handle_of
        from retinue.core.wire.messages import ActorInfo

        facts = context.facts
        if facts is None or facts.actor_spec is None:
            raise RuntimeError("current_actor is for actors")
        spec = facts.actor_spec
        return handle_of(self._runtime, ActorInfo(spec.actor_id, "ALIVE", facts.incarnation, spec=spec))

    @property
    def runtime_env(self) -> RuntimeEnv:
        """The runtime_env that this process was made for."""
        return RuntimeEnv(**json.loads(self._runtime.worker_env.runtime_env))

    def get_runtime_env_string(self) -> str:
        """The runtime_env that this process was made for, as JSON."""
        return self._runtime.worker_env.runtime_env

    def get_session_name(self) -> str:
        """The name of the cluster's session folder on this node."""
        return os.path.basename(self._runtime.session_dir)

    @property
    def gcs_address(self) -> str:
        """Where the head listens."""
        head = self._runtime.head.address
        return f"{head.host}:{head.port}" if head.port else head.path

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task or actor was granted, e.g. {"CPU": 1.0}. Empty in a driver."""
        return dict(context.facts.resources) if context.facts is not None else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The granted accelerators as the node names them, e.g. {"GPU": ["0"]}; always has the key GPU."""
        found = context.facts.accelerator_ids() if context.facts is not None else {}
        return {"GPU": [], **found}

    def get_node_labels(self) -> dict[str, str]:
        return dict(self._runtime.node_labels)

    def is_canceled(self) -> bool:
        """Whether the running task, method or request was cancelled; long synchronous code should ask."""
        request = context.cancellable.get()
        if request is not None and request.is_cancelled:
            return True
        running = context.running.get()
        return running.is_cancelled if running is not None else False

    def get(self) -> dict[str, Any]:
        """Everything in one dict, for logging."""
        return {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
            "task_id": self.get_task_id(),
            "actor_id": self.get_actor_id(),
        }


def get_runtime_context() -> RuntimeContext:
    """The context of the code that calls this."""
    return RuntimeContext(get_runtime())
