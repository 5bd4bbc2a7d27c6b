"""Serve's routes in the cluster's admin server, behind its token; as Ray Serve's REST interface.

    GET    /api/serve/applications/     ServeInstanceDetails; its empty form where serve does not run
    PUT    /api/serve/applications/     a ServeDeploySchema: checked whole before anything changes
    DELETE /api/serve/applications/     shut serve down
    POST   /api/v1/applications/{app}/deployments/{deployment}/scale    {"target_num_replicas": n}

Errors are JSON, {"error": text}, with `problems` (path and text of each) where input is bad.

Lives here: requests and answers. Does not: the server (core), what the controller does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import yaml
from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from retinue.core.doors import DoorClosedError
from retinue.core.doors.admin import AdminContext, ServerUnavailable
from retinue.serve.cluster_start import start_for
from retinue.serve.controller_client import ControllerClient, ServeNotRunningError
from retinue.serve.deploy_schema import ServeDeploySchema
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.models import StrictModel, explain
from retinue.serve.status_schema import APIType, ServeInstanceDetails

TIMEOUT_S = 30.0
MAX_BODY_BYTES = 4 << 20

Answer = Callable[[AdminContext, Request], Awaitable[Response]]


class ScaleDeploymentRequest(StrictModel):
    """How many replicas there shall be."""

    target_num_replicas: int = Field(ge=0)


def routes(context: AdminContext) -> list[BaseRoute]:
    """What the admin server adds."""

    def route(path: str, method: str, answer: Answer) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _guarded(answer, context, request)

        return Route(path, endpoint, methods=[method])

    applications = "/api/serve/applications/"
    return [
        route(applications, "GET", _get_applications),
        route(applications, "PUT", _put_applications),
        route(applications, "DELETE", _delete_applications),
        route("/api/v1/applications/{app}/deployments/{deployment}/scale", "POST", _scale),
    ]


async def _guarded(answer: Answer, context: AdminContext, request: Request) -> Response:
    try:
        return await answer(context, request)
    except ValidationError as error:
        return _bad(explain(error))
    except _BadRequest as error:
        return _bad([str(error)])
    except ServeNotRunningError as error:
        return JSONResponse({"error": str(error)}, error.http_status)
    except (ServerUnavailable, DoorClosedError, TimeoutError, ConnectionError) as error:
        text = str(error) or "the controller does not answer"
        return JSONResponse({"error": text}, 503, {"Retry-After": "1"})
    except RetinueServeException as error:
        return JSONResponse({"error": str(error)}, error.http_status)
    except ValueError as error:  # what the controller refuses: nothing was changed
        return _bad([str(error)])


class _BadRequest(Exception):
    """The request is none that can be answered."""


def _bad(problems: list[str]) -> Response:
    return JSONResponse({"error": "; ".join(problems), "problems": problems}, 400)


async def _read(request: Request) -> Any:
    """The body: JSON, or YAML if its content type says so."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise _BadRequest(f"the body has more than {MAX_BODY_BYTES} bytes")
    try:
        if "yaml" in request.headers.get("content-type", ""):
            return yaml.safe_load(body)
        return json.loads(body)
    except (ValueError, yaml.YAMLError) as error:
        raise _BadRequest(f"the body is no JSON: {error}") from error


async def _get_applications(context: AdminContext, request: Request) -> Response:
    wanted = request.query_params.get("api_type", "").lower()
    known = APIType.get_valid_user_values()
    if wanted and wanted not in known:
        raise _BadRequest(f"api_type is one of {', '.join(known)}, got {wanted!r}")
    async with ControllerClient(context, timeout_s=TIMEOUT_S) as client:
        try:
            details = await client.details()
        except ServeNotRunningError:
            return JSONResponse(ServeInstanceDetails.get_empty_schema_dict())
    if wanted:
        document = json.loads(details)
        document["applications"] = {
            name: app for name, app in document["applications"].items() if app["source"] == wanted
        }
        return JSONResponse(document)
    return Response(details, media_type="application/json")


async def _put_applications(context: AdminContext, request: Request) -> Response:
    config = ServeDeploySchema.model_validate(await _read(request))
    async with ControllerClient(context, timeout_s=TIMEOUT_S) as client:
        if not await client.is_running():
            await asyncio.to_thread(start_for, context, config)
        await client.apply_config(config.model_dump_json(exclude_unset=True).encode())
    return Response()


async def _delete_applications(context: AdminContext, request: Request) -> Response:
    async with ControllerClient(context, timeout_s=TIMEOUT_S) as client:
        await client.shutdown()
    return Response()


async def _scale(context: AdminContext, request: Request) -> Response:
    asked = ScaleDeploymentRequest.model_validate(await _read(request))
    app, deployment = request.path_params["app"], request.path_params["deployment"]
    async with ControllerClient(context, timeout_s=TIMEOUT_S) as client:
        try:
            known = json.loads(await client.details())["applications"]
            if deployment not in known.get(app, {"deployments": ()})["deployments"]:
                return JSONResponse({"error": f"there is no deployment {app}#{deployment}"}, 404)
            if not known[app]["external_scaler_enabled"]:
                text = f"application {app!r} has no external_scaler_enabled: true in its config"
                return JSONResponse({"error": text}, 412)
            await client.scale(app, deployment, asked.target_num_replicas)
        except ServeNotRunningError as error:
            return JSONResponse({"error": str(error)}, 503)
    return JSONResponse({"message": f"{app}#{deployment} is being scaled to {asked.target_num_replicas}"})
