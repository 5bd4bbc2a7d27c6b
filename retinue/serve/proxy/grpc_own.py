"""The service that the proxy itself offers by gRPC: which applications there are, and whether it is well.

The descriptor is made at run time, so no generated code is shipped; reflection shows it to clients:

    package retinue.serve;
    service RetinueServeAPIService {
      rpc ListApplications(ListApplicationsRequest) returns (ListApplicationsResponse);
      rpc Healthz(HealthzRequest) returns (HealthzResponse);
    }
    message ListApplicationsResponse { repeated string application_names = 1; }
    message HealthzResponse { string message = 1; }

Lives here: that service. Does not: the standard health service and reflection (`grpc_server`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from retinue.serve.grpc_status import Status

SERVICE = "retinue.serve.RetinueServeAPIService"
# Clients that were written for Ray call it by this name; the messages are the same on the wire.
RAY_SERVICE = "ray.serve.RayServeAPIService"
_FILE = "retinue/serve/api.proto"
_PACKAGE = "retinue.serve"


class Messages(NamedTuple):
    """The classes of the service's messages."""

    list_request: Any
    list_response: Any
    healthz_request: Any
    healthz_response: Any


def messages() -> Messages:
    """Known to protobuf's default pool from the first call on."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_FILE)
    except KeyError:
        pool.Add(_descriptor())
    names = ("ListApplicationsRequest", "ListApplicationsResponse", "HealthzRequest", "HealthzResponse")
    return Messages(
        *(message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in names)
    )


def _descriptor() -> Any:
    proto = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    proto.message_type.add(name="ListApplicationsRequest")
    proto.message_type.add(name="ListApplicationsResponse").field.add(
        name="application_names", number=1, label=field.LABEL_REPEATED, type=field.TYPE_STRING
    )
    proto.message_type.add(name="HealthzRequest")
    proto.message_type.add(name="HealthzResponse").field.add(
        name="message", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING
    )
    service = proto.service.add(name=SERVICE.rpartition(".")[2])
    for name in ("ListApplications", "Healthz"):
        service.method.add(
            name=name, input_type=f".{_PACKAGE}.{name}Request", output_type=f".{_PACKAGE}.{name}Response"
        )
    return proto


def handlers(status: Callable[[], Status], app_names: Callable[[], list[str]]) -> tuple[Any, ...]:
    """For grpc's server. `status`: what is wrong with the proxy, or OK with a word."""
    kinds = messages()

    async def list_applications(request: Any, context: Any) -> Any:
        _set(context, status())
        return kinds.list_response(application_names=app_names())

    async def healthz(request: Any, context: Any) -> Any:
        found = status()
        _set(context, found)
        return kinds.healthz_response(message=found.details)

    methods = {
        "ListApplications": grpc.unary_unary_rpc_method_handler(
            list_applications, kinds.list_request.FromString, kinds.list_response.SerializeToString
        ),
        "Healthz": grpc.unary_unary_rpc_method_handler(
            healthz, kinds.healthz_request.FromString, kinds.healthz_response.SerializeToString
        ),
    }
    return tuple(grpc.method_handlers_generic_handler(name, methods) for name in (SERVICE, RAY_SERVICE))


def _set(context: Any, status: Status) -> None:
    if status.code:
        context.set_code(status.code)
        context.set_details(status.details)
