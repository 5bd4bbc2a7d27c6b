"""The controller's door for tools: what the command line and the REST interface ask of it.

Lives here: the methods' names and bodies. Does not: what they do (`actor`), the callers' end
(`retinue.serve.controller_client`). The controller opens it with `doors.open(ADMIN_DOOR, AdminDoor(self))`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from retinue.core.doors import DoorContext
from retinue.exceptions import RetinueError

ADMIN_DOOR = "serve.admin"


class ScaleRequest(msgspec.Struct, frozen=True):
    app_name: str
    deployment_name: str
    target_num_replicas: int


class ControlledByTools(Protocol):
    """The controller's methods of the same names; bytes are JSON."""

    async def details(self) -> bytes: ...
    async def status(self) -> bytes: ...
    async def apply_config(self, config_json: bytes) -> None: ...
    async def delete(self, names: list[str]) -> None: ...
    async def changed(self, version: int) -> int: ...
    async def scale(self, app_name: str, deployment_name: str, num_replicas: int) -> None: ...
    async def shutdown(self) -> None: ...


class AdminDoor:
    """Methods and bodies: `details`, `status` () -> JSON; `apply_config` (JSON of ServeDeploySchema);
    `delete` (msgpack list of names); `changed` (msgpack int) -> msgpack int; `scale` (msgpack ScaleRequest);
    `shutdown` (). What returns nothing answers with b""."""

    def __init__(self, controller: ControlledByTools) -> None:
        self._controller = controller

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        controller = self._controller
        match method:
            case "details":
                return await controller.details()
            case "status":
                return await controller.status()
            case "changed":
                version = await controller.changed(msgspec.msgpack.decode(body, type=int))
                return msgspec.msgpack.encode(version)
            case "apply_config":
                await controller.apply_config(bytes(body))
            case "delete":
                await controller.delete(msgspec.msgpack.decode(body, type=list[str]))
            case "scale":
                asked = msgspec.msgpack.decode(body, type=ScaleRequest)
                await controller.scale(asked.app_name, asked.deployment_name, asked.target_num_replicas)
            case "shutdown":
                await controller.shutdown()
            case _:
                raise RetinueError(f"the controller's door has no method {method!r}")
        return b""
