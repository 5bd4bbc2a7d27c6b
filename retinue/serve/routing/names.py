"""Ids that users see: of deployments, and of their replicas."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeploymentID:
    """A deployment's name, and its application's."""

    name: str
    app_name: str = "default"

    def __str__(self) -> str:
        return f"{self.app_name}#{self.name}"


@dataclass(frozen=True, slots=True)
class ReplicaID:
    """A replica: unique within its deployment, and the deployment."""

    unique_id: str
    deployment_id: DeploymentID

    def to_full_id_str(self) -> str:
        """As `replica_id` is written elsewhere: app#deployment#unique."""
        return f"{self.deployment_id}#{self.unique_id}"

    @classmethod
    def from_full_id_str(cls, text: str) -> ReplicaID:
        """Raises ValueError for what is none."""
        parts = text.split("#")
        if len(parts) != 3:
            raise ValueError(f"a replica's id is app#deployment#unique, not {text!r}")
        return cls(parts[2], DeploymentID(parts[1], parts[0]))

    def __str__(self) -> str:
        return self.to_full_id_str()
