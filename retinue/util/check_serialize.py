"""Find out why a value cannot be sent to another process.

Lives here: `inspect_serializability` and the walk from a value to the part of it that refuses. The walk
looks at plain state only (closures, attributes, items): it runs no property and no `__getattr__`.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from msgspec import Struct

import retinue.core.serialization


class FailureTuple(Struct, frozen=True, eq=False):
    """One value that cannot be serialized: `obj`, the `path` of names that leads to it, its `parent`."""

    obj: Any
    path: tuple[str, ...]
    parent: Any

    @property
    def name(self) -> str:
        """The last name of the path: a variable, an attribute, or an index."""
        return self.path[-1] if self.path else "unknown"

    def __repr__(self) -> str:
        path = " -> ".join(self.path)
        return f"FailTuple({self.name} [path={path}, obj={self.obj!r}, parent={self.parent!r}])"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Say whether `base_obj` can be serialized and, if not, which parts of it cannot.

    Follows closures, attributes and items for at most `depth` steps, and prints what it tries to
    `print_file` (standard output if None). Returns `(True, set())`, or False with the innermost culprit on
    each failing branch that it could reach; where no part alone is to blame, that is the whole.
    """
    search = _Search(print_file or sys.stdout)
    search.say(0, f"Checking whether {base_obj!r} can be serialized")
    search.visit(base_obj, name or _name_of(base_obj), depth)
    if search.failures:
        search.say(0, "Cannot be serialized:")
        for failure in search.failures:
            search.say(1, repr(failure))
        search.say(0, "Create such values where they are used, inside the task or the actor, or register a")
        search.say(0, "serializer for their class: retinue.util.register_serializer.")
    return not search.failures, set(search.failures)


class _Search:
    """A depth-first walk that collects the innermost values that fail."""

    def __init__(self, out: TextIO) -> None:
        self.failures: list[FailureTuple] = []
        self._out = out
        self._open: set[int] = set()  # on the path from the root to here
        self._failed: dict[int, Any] = {}  # holds the values, so that their ids stay theirs

    def say(self, level: int, text: str) -> None:
        print("    " * level + text, file=self._out)

    def visit(self, obj: Any, name: str, depth: int, path: tuple[str, ...] = (), parent: Any = None) -> bool:
        """Record what fails at or below `obj`; say whether `obj` itself fails."""
        error = _serialization_error(obj)
        if error is None:
            return False
        path = (*path, name)
        self.say(len(path), f"{name}: {type(obj).__name__} fails: {error}")
        self._open.add(id(obj))
        found = False
        for part_name, part in _parts(obj) if depth > 0 else ():
            if id(part) in self._open:
                continue
            found |= id(part) in self._failed or self.visit(part, part_name, depth - 1, path, obj)
        if not found:
            self.failures.append(FailureTuple(obj, path, parent))
        self._open.remove(id(obj))
        self._failed[id(obj)] = obj
        return True


def _serialization_error(obj: Any) -> Exception | None:
    try:
        retinue.core.serialization.serialize(obj)
    except Exception as error:  # noqa: BLE001  whatever the value's own hooks raise is the finding
        return error
    return None


def _name_of(obj: Any) -> str:
    return str(getattr(obj, "__qualname__", None) or type(obj).__name__)


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield the named values that are serialized together with `obj`."""
    if inspect.isfunction(obj):
        yield from _parts_of_function(obj)
    elif inspect.ismethod(obj):
        yield "__self__", obj.__self__
        yield "__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield from [("func", obj.func), ("args", obj.args), ("keywords", obj.keywords)]
    elif isinstance(obj, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))
    elif isinstance(obj, property):
        yield from ((name, getattr(obj, name)) for name in ("fget", "fset", "fdel"))
    elif isinstance(obj, (staticmethod, classmethod)):
        yield "__func__", obj.__func__
    else:
        yield from _parts_of_instance(obj)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    try:
        variables = inspect.getclosurevars(function)
    except ValueError:  # a closure cell that is still empty
        return
    yield from variables.globals.items()
    yield from variables.nonlocals.items()
    yield from ((f"default {i}", value) for i, value in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()


def _parts_of_instance(obj: Any) -> Iterator[tuple[str, Any]]:
    yield from (item for item in getattr(obj, "__dict__", {}).items() if not _is_dunder(item[0]))
    if inspect.isclass(obj):
        yield from ((base.__name__, base) for base in obj.__bases__)
        return
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not _is_dunder(name) and hasattr(obj, name):
                yield name, getattr(obj, name)
    # Last, because it is seldom the culprit: a class that travels by value.
    yield type(obj).__name__, type(obj)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name != "__init__"
