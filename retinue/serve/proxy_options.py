"""Where proxies run, what they listen on, and their limits.

Lives here: the fields, their defaults and checks. Does not: the proxies. `retinue.serve.config` is the public
home of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from retinue.serve.models import StrictModel, check_import_path, import_attribute

DEFAULT_HTTP_HOST = "127.0.0.1"
DEFAULT_HTTP_PORT = 8000
DEFAULT_GRPC_PORT = 9000


class ProxyLocation(StrEnum):
    """Which nodes run proxies: none, the head's alone, or each that has a replica (the default)."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"

    @classmethod
    def _missing_(cls, value: object) -> ProxyLocation | None:
        return cls.Disabled if value == "NoServer" else None


class _HTTPFields(StrictModel):
    host: str | None = Field(
        default=DEFAULT_HTTP_HOST,
        description="Address to listen on; '0.0.0.0' or '::' for all interfaces. Null: no HTTP.",
    )
    port: int = Field(default=DEFAULT_HTTP_PORT, ge=0, le=65535, description="0: a free one.")
    root_path: str = Field(
        default="",
        description="The prefix that a proxy in front of this one removes; in the ASGI scope's root_path.",
    )
    request_timeout_s: PositiveFloat | None = Field(
        default=None, description="From the first byte of a request to the last of its answer; then 504."
    )
    keep_alive_timeout_s: NonNegativeInt = Field(
        default=90, description="How long a connection may be idle between two requests."
    )
    ssl_keyfile: str | None = Field(default=None, description="With ssl_certfile: HTTPS.")
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = Field(
        default=None, description="Certificates that clients must prove to be signed by."
    )
    max_body_bytes: PositiveInt | None = Field(
        default=None, description="Longer request bodies are refused with 413. Null: no limit; bodies stream."
    )
    max_header_bytes: PositiveInt = Field(
        default=65536, description="Of request line and headers together; longer ones are refused with 431."
    )
    header_timeout_s: PositiveFloat | None = Field(
        default=30.0, description="From a request's first byte to the end of its headers; then 408."
    )
    body_timeout_s: PositiveFloat | None = Field(
        default=60.0, description="How long a client may send nothing of a body that it owes; then 408."
    )
    write_timeout_s: PositiveFloat | None = Field(
        default=60.0, description="How long a client may take nothing of its answer; then it is cut off."
    )
    max_connections: PositiveInt | None = Field(
        default=None, description="Of each proxy process; further ones wait in the listener's queue."
    )
    expose_tracebacks: bool = Field(
        default=False, description="Answer errors of user code with the traceback; for development."
    )

    @field_validator("root_path")
    @classmethod
    def _root_path_has_the_form(cls, value: str) -> str:
        if value and (not value.startswith("/") or value.endswith("/")):
            raise ValueError(f"root_path begins with '/' and does not end with it, got {value!r}")
        return value

    @model_validator(mode="after")
    def _key_and_certificate_go_together(self) -> _HTTPFields:
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise ValueError("HTTPS needs both ssl_keyfile and ssl_certfile")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ValueError("ssl_ca_certs needs ssl_keyfile and ssl_certfile")
        return self


class HTTPOptions(_HTTPFields):
    """HTTP of the proxies. The options of the first start hold until serve is shut down."""

    middlewares: list[Any] = Field(default=[], exclude=True)
    location: ProxyLocation | None = None
    num_cpus: int = Field(default=0, exclude=True)
    root_url: str = ""
    num_processes: PositiveInt = Field(default=1, description="Proxy processes on each node; one port.")
    model_config = ConfigDict(arbitrary_types_allowed=True)

    @field_validator("middlewares")
    @classmethod
    def _no_middlewares(cls, value: list[Any]) -> list[Any]:
        if value:
            raise ValueError(
                "middlewares is not supported: add them to the ingress app, as in app.add_middleware"
            )
        return value

    @field_validator("num_cpus")
    @classmethod
    def _no_cpus(cls, value: int) -> int:
        if value:
            raise ValueError("num_cpus is not supported: proxies take no CPU resource")
        return value

    @model_validator(mode="after")
    def _no_host_is_no_server(self) -> HTTPOptions:
        if self.host is None:
            self.location = ProxyLocation.Disabled
        return self


class HTTPOptionsSchema(_HTTPFields):
    """The key `http_options` of a config file."""

    num_processes: PositiveInt = Field(default=1, description="Proxy processes on each node; one port.")

    def to_options(self) -> HTTPOptions:
        return HTTPOptions(**self.model_dump(exclude_unset=True))


class gRPCOptions(StrictModel):
    """gRPC of the proxies. It is served once there are servicers; each is an import path of the generated
    `add_..._to_server` function."""

    port: int = Field(default=DEFAULT_GRPC_PORT, ge=0, le=65535, description="0: a free one.")
    host: str = Field(
        default=DEFAULT_HTTP_HOST, description="Address to listen on; '0.0.0.0' or '::' for all interfaces."
    )
    grpc_servicer_functions: list[str] = Field(default=[])
    request_timeout_s: PositiveFloat | None = None
    enable_reflection: bool = True

    @field_validator("grpc_servicer_functions")
    @classmethod
    def _are_import_paths(cls, value: list[str]) -> list[str]:
        return [check_import_path(path) for path in value]

    @property
    def grpc_servicer_func_callable(self) -> list[Callable[..., Any]]:
        """The functions, imported. Raises what importing raises, and TypeError for what cannot be called."""
        functions = [import_attribute(path) for path in self.grpc_servicer_functions]
        for path, function in zip(self.grpc_servicer_functions, functions, strict=True):
            if not callable(function):
                raise TypeError(f"{path!r} in grpc_servicer_functions is no function, but {function!r}")
        return functions


class gRPCOptionsSchema(gRPCOptions):
    """The key `grpc_options` of a config file."""

    def to_options(self) -> gRPCOptions:
        return gRPCOptions(**self.model_dump(exclude_unset=True))


class ControllerOptions(StrictModel):
    """Of the controller's process: `runtime_env` with `env_vars`, and nothing else in it."""

    runtime_env: dict[str, Any] | None = None

    @field_validator("runtime_env")
    @classmethod
    def _only_env_vars(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        others = sorted(set(value) - {"env_vars"})
        if others:
            raise ValueError(
                f"the controller's runtime_env holds env_vars only, got {', '.join(others)}; "
                "what replicas need goes into a deployment's ray_actor_options"
            )
        variables = value.get("env_vars", {})
        if not isinstance(variables, dict) or not all(
            isinstance(k, str) and k and isinstance(v, str) for k, v in variables.items()
        ):
            raise ValueError(f"env_vars is a dict from name to string, got {variables!r}")
        return value
