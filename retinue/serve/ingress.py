"""`@serve.ingress`: a web application as a deployment's way in.

Lives here: the decorator, and what makes an application of a class: FastAPI routes among its methods get the
replica's instance as `self`. This is the one place that knows FastAPI. Does not: running it (`replica.asgi`).
"""

from __future__ import annotations

import copyreg
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from retinue.serve.exceptions import RetinueServeException

MARK = "__retinue_asgi__"
BUILD_METHOD = "__serve_build_asgi_app__"
_OWNER = "__retinue_ingress__"
C = TypeVar("C", bound=type)


class Ingress:
    """What an ingress class carries: its application, or the function that builds it in the replica."""

    def __init__(self, app: Any = None, build: Callable[[], Any] | None = None) -> None:
        self.app = app
        self.build = build
        # Qualified names of the class and its bases, where it is written: a class that was made in a function
        # arrives in the replica without the function's part of its name, its methods arrive with it.
        self.owners: frozenset[str] = frozenset()

    def make(self, instance: Any) -> Any:
        """The application for this instance of the class. Called once, in the replica."""
        app = self.app
        build = getattr(instance, BUILD_METHOD, None) or self.build
        if build is not None:
            app = build()
            if app is None:
                raise TypeError(
                    f"{getattr(build, '__name__', build)!r} must return an ASGI application, not None"
                )
        _bind_methods(app, instance, self.owners | _owners(type(instance)))
        return app


def ingress(app: Any = None) -> Callable[..., Any]:
    """Let an ASGI application answer a deployment's HTTP requests and websockets.

    `app`: a FastAPI or Starlette application or any other ASGI callable; or a function without parameters
    that returns one, which is called in each replica. Methods of the class that FastAPI's decorators have
    made routes get the replica's instance as `self`. Without `app`, the class has a method
    `__serve_build_asgi_app__` that returns it.

        @serve.deployment
        @serve.ingress(app)
        class Api:
            @app.get("/{name}")
            async def greet(self, name: str) -> str: ...

    The decorator may also be called without a class: `serve.deployment(serve.ingress(app)())`. Raises
    ValueError for what is no class, or has `__call__`, which would never be called.
    """
    is_builder = inspect.isfunction(app) and not _takes_messages(app)
    marker = Ingress(build=app) if is_builder else Ingress(app)
    if app is not None and not is_builder:
        _make_picklable()

    def decorate(cls: Any = None) -> Any:
        if cls is None:
            cls = type("ASGIIngressDeployment", (_Holder,), {"__module__": __name__})
        if not inspect.isclass(cls):
            raise ValueError(f"@serve.ingress decorates a class, not {cls!r}; put it below @serve.deployment")
        if "__call__" in _own_names(cls):
            raise ValueError(
                f"{cls.__name__} has a __call__ method, but @serve.ingress lets its application answer"
            )
        if app is None and not hasattr(cls, BUILD_METHOD):
            raise ValueError(f"@serve.ingress() without an application needs {cls.__name__}.{BUILD_METHOD}()")
        marker.owners = _owners(cls)
        for route in _methods_among(marker.app, marker.owners):
            if not inspect.signature(route.endpoint).parameters:
                raise RetinueServeException(
                    f"{route.endpoint.__qualname__} is a route, and a method of an ingress class: its first "
                    f"parameter must be `self`"
                )
            setattr(route.endpoint, _OWNER, cls.__qualname__)
            _resolve_annotations(route.endpoint)
            _resolve_dependencies(getattr(route, "dependant", None))
        setattr(cls, MARK, marker)
        return cls

    return decorate


class _Holder:
    """The class of an ingress that was given none: it keeps its arguments, as handles may be among them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


def _own_names(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}


def _takes_messages(function: Callable[..., Any]) -> bool:
    """Whether a plain function is an ASGI application itself: (scope, receive, send)."""
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return len(required) == 3


# --- routes among methods


def _routes(app: Any) -> Iterator[tuple[list[Any], int, Any]]:
    """Every route with an endpoint, with the list that it is in; through included routers (new FastAPI)."""
    routes = getattr(app, "routes", None)
    if not isinstance(routes, list):
        return
    for index in range(len(routes) - 1, -1, -1):
        route = routes[index]
        nested = getattr(route, "original_router", None)
        if nested is not None:
            yield from _routes(nested)
        elif inspect.isfunction(getattr(route, "endpoint", None)):
            yield routes, index, route


def _owners(cls: type) -> frozenset[str]:
    return frozenset(base.__qualname__ for base in cls.__mro__ if base is not object)


def _is_of(route: Any, owners: frozenset[str]) -> bool:
    """Whether its endpoint is a method of one of these classes: not a function within a method."""
    owner, _, _ = route.endpoint.__qualname__.rpartition(".")
    return owner in owners


def _methods_among(app: Any, owners: frozenset[str]) -> list[Any]:
    return [route for _, _, route in _routes(app) if _is_of(route, owners)]


def _resolve_annotations(function: Any) -> None:
    """Put types where `from __future__ import annotations` left strings.

    FastAPI reads them again in the replica. The class gets there by value, and with it those globals that its
    code uses, but not those that only strings name.
    """
    annotations = getattr(function, "__annotations__", None)
    if not annotations:
        return
    for name, annotation in annotations.items():
        if isinstance(annotation, str):
            try:
                annotations[name] = eval(annotation, function.__globals__)
            except (AttributeError, NameError, SyntaxError, TypeError):
                pass  # a name for type checkers alone: FastAPI could not read it either


def _resolve_dependencies(dependant: Any) -> None:
    """The same for functions in FastAPI's `Depends`, and those that these depend on."""
    for dependency in getattr(dependant, "dependencies", ()):
        call = dependency.call
        _resolve_annotations(call if inspect.isfunction(call) else getattr(call, "__init__", None))
        _resolve_dependencies(dependency)


def _bind_methods(app: Any, instance: Any, owners: frozenset[str]) -> None:
    """Give routes that are methods of the instance's class their `self`; drop those of other classes."""
    for routes, index, route in list(_routes(app)):
        if _is_of(route, owners):
            _make_again(route, types.MethodType(route.endpoint, instance))
        elif getattr(route.endpoint, _OWNER, None) is not None:
            del routes[index]


def _make_again(route: Any, endpoint: Callable[..., Any]) -> None:
    """Run the route's own constructor again with another endpoint, so that it reads its parameters anew.

    Constructors of FastAPI's and Starlette's routes keep each argument as an attribute of the same name. Made
    in place, so that whatever includes the route has it.
    """
    parameters = inspect.signature(type(route).__init__).parameters
    kept = {
        name: getattr(route, name)
        for name, parameter in parameters.items()
        if name not in ("self", "endpoint")
        and hasattr(route, name)
        and parameter.kind is not parameter.VAR_KEYWORD
    }
    kept.pop("middleware", None)
    type(route).__init__(route, endpoint=endpoint, **kept)


def _make_picklable() -> None:
    """Teach pickles what applications have in them: locks in FastAPI's included routers (since 0.137), and
    Starlette's State, which cannot be unpickled as it is."""
    routing = sys.modules.get("fastapi.routing")
    included = getattr(routing, "_IncludedRouter", None)
    if included is not None and included not in copyreg.dispatch_table:
        copyreg.pickle(included, _reduce_included)
    datastructures = sys.modules.get("starlette.datastructures")
    state = getattr(datastructures, "State", None)
    if state is not None and state not in copyreg.dispatch_table:
        copyreg.pickle(state, _reduce_state)


def _reduce_included(router: Any) -> tuple[Any, ...]:
    return _include, (router.original_router, router.include_context)


def _include(original_router: Any, include_context: Any) -> Any:
    from fastapi import routing

    return routing._IncludedRouter(original_router=original_router, include_context=include_context)


def _reduce_state(state: Any) -> tuple[Any, ...]:
    return type(state), (dict(state._state),)
