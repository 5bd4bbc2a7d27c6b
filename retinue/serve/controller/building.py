"""Applications of a config file: built in a task of their own runtime_env, and serve's own options.

Lives here: that. Does not: building (`retinue.serve.build`), deploying (`actor`).
"""

from __future__ import annotations

import retinue
from retinue.serve.controller.checkpoint import InstanceRecord
from retinue.serve.deploy_schema import ServeApplicationSchema, ServeDeploySchema
from retinue.serve.messages import ApplicationSpec, decode, encode


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
