"""Applications of a config file: built in a task of their own runtime_env, and serve's own options.

Lives here: that. Does not: building (`retinue.serve.build`), deploying (`actor`).
"""

from __future__ import annotations

import json

import msgspec

import retinue
from retinue.serve.config import DeploymentConfig
from retinue.serve.controller.checkpoint import InstanceRecord
from retinue.serve.deploy_schema import ServeApplicationSchema, ServeDeploySchema
from retinue.serve.messages import ApplicationSpec, DeploymentSpec, decode, encode


def _build(config: bytes) -> bytes:
    from retinue.serve.build import build_from_config  # the user's code is imported with it

    return encode(build_from_config(ServeApplicationSchema.model_validate_json(config)))


async def build_remotely(config: bytes) -> ApplicationSpec:
    """Import and build an application (JSON of its ServeApplicationSchema). Raises what that raises."""
    schema = ServeApplicationSchema.model_validate_json(config)
    task = retinue.remote(_build).options(
        num_cpus=0, max_retries=0, runtime_env=dict(schema.runtime_env) or None
    )
    return decode(ApplicationSpec, await task.remote(config))


def with_replicas(spec: DeploymentSpec, num_replicas: int) -> DeploymentSpec:
    """The deployment with another number of replicas. Raises pydantic.ValidationError for what is none."""
    options = json.loads(spec.config or b"{}") | {"num_replicas": num_replicas}
    config = DeploymentConfig.model_validate(options)
    return msgspec.structs.replace(spec, config=config.model_dump_json().encode())


def changes_proxies(config: ServeDeploySchema, known: InstanceRecord) -> bool:
    """Whether the config says other options of proxies than those that they were started with."""
    if not known.proxies_are_wanted:
        return False
    http = json.loads(known.http_options or b"{}")
    grpc = json.loads(known.grpc_options or b"{}")
    said = [
        (config.http_options.model_dump(mode="json", exclude_unset=True), http),
        (config.grpc_options.model_dump(mode="json", exclude_unset=True), grpc),
    ]
    is_moved = "proxy_location" in config.model_fields_set and config.proxy_location.value != known.location
    return is_moved or any(
        name in options and options[name] != value for given, options in said for name, value in given.items()
    )


def instance_of(config: ServeDeploySchema, known: InstanceRecord, text: bytes) -> InstanceRecord:
    """Serve's options by a config. Proxies that run keep theirs."""
    wanted = known.proxies_are_wanted
    return InstanceRecord(
        location=known.location if wanted else config.proxy_location.value,
        http_options=known.http_options
        if wanted
        else config.http_options.model_dump_json(exclude_unset=True).encode(),
        grpc_options=known.grpc_options
        if wanted
        else config.grpc_options.model_dump_json(exclude_unset=True).encode(),
        logging_config=config.logging_config.model_dump_json().encode() if config.logging_config else b"",
        target_capacity=config.target_capacity,
        config=bytes(text),
        proxies_are_wanted=True,
    )
