"""User code that an option names: by import path, or the thing itself.

It runs in processes that may not have the user's folders on their path (controller, proxies), so `embed` puts
its definition beside its name, where the application is built. Lives here: that pair. Does not: running it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import cloudpickle
from cloudpickle.cloudpickle import list_registry_pickle_by_value
from pydantic import Field, model_validator

from retinue.serve.models import StrictModel, check_import_path, import_attribute

OWN_PACKAGE = "retinue."


class CodeReference(StrictModel):
    """A model with one field that names code (`_reference_field`), and its definition once embedded."""

    _reference_field: ClassVar[str]

    definition: bytes = Field(default=b"", repr=False)

    @model_validator(mode="before")
    @classmethod
    def _callables_are_pickled(cls, data: Any) -> Any:
        name = cls._reference_field
        given = data.get(name) if isinstance(data, dict) else None
        if callable(given):
            return {**data, name: _path_of(given), "definition": by_value(given)}
        if isinstance(given, str):
            check_import_path(given)
        return data

    def embed(self) -> None:
        """Import what the path names and keep its definition. Raises what importing raises."""
        path = getattr(self, self._reference_field)
        if not self.definition and not path.startswith(OWN_PACKAGE):
            self.definition = by_value(import_attribute(path))

    def load(self) -> Any:
        """The code: from its definition, else imported."""
        if self.definition:
            return cloudpickle.loads(self.definition)
        return import_attribute(getattr(self, self._reference_field))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodeReference):
            return NotImplemented
        return self.model_dump(exclude={"definition"}) == other.model_dump(exclude={"definition"})

    def __hash__(self) -> int:
        return hash(getattr(self, self._reference_field))


def _path_of(thing: Callable[..., Any]) -> str:
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    return f"{thing.__module__}:{thing.__qualname__}"


def by_value(thing: Any) -> bytes:
    """Pickle with the definition in it, also if it is from a module of the user's own folders."""
    module = sys.modules.get(getattr(thing, "__module__", None) or type(thing).__module__)
    with _registered(module):
        return cloudpickle.dumps(thing)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _registered(module: ModuleType | None) -> Iterator[None]:
    if module is None or module.__name__ in ("__main__", "builtins") or _is_installed(module):
        yield
        return
    if module.__name__ in list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or "site-packages" in file or module.__name__.startswith(OWN_PACKAGE)
