"""A deployment's spec, read once: its options, and what stands for them.

Lives here: which options a running replica can take in place. Does not: taking them (`replicas`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from retinue.serve.config import DeploymentConfig
from retinue.serve.messages import DeploymentSpec

# Options that concern the controller and the routers only: no replica has to hear of them.
NOT_FOR_REPLICAS = frozenset(
    {
        "num_replicas",
        "autoscaling_config",
        "max_queued_requests",
        "max_queue_wait_s",
        "backpressure_config",
        "max_constructor_retry_count",
        "rolling_update_percentage",
        "max_surge_percent",
        "max_replicas_per_node",
    }
)


@dataclass(frozen=True, slots=True)
class Release:
    """`config_id` stands for the options that replicas have; `release_id` also for their code."""

    spec: DeploymentSpec
    config: DeploymentConfig
    config_id: str

    @property
    def version(self) -> str:
        return self.spec.version

    @property
    def release_id(self) -> str:
        return release_id(self.spec.version, self.config_id)

    @property
    def resources(self) -> dict[str, float]:
        """What one replica asks for."""
        return resources_of(json.loads(self.spec.actor_options or b"{}"))


def release_id(version: str, config_id: str) -> str:
    return f"{version}/{config_id}"


def read(spec: DeploymentSpec) -> Release:
    """Raises pydantic.ValidationError for options that are none."""
    config = DeploymentConfig.model_validate_json(spec.config or b"{}")
    told = config.model_dump(mode="json", exclude=set(NOT_FOR_REPLICAS))
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()
    return Release(spec, config, digest)


def resources_of(options: dict[str, object]) -> dict[str, float]:
    """The resources of an actor's options, amounts of zero left out; 1 CPU unless set."""
    given = options.get("resources")
    amounts: dict[str, object] = {
        "CPU": 1 if options.get("num_cpus") is None else options["num_cpus"],
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
        **(given if isinstance(given, dict) else {}),
    }
    return {
        name: float(amount) for name, amount in amounts.items() if isinstance(amount, int | float) and amount
    }
