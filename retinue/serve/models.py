"""The base of serve's pydantic models: what is written must be known.

A key that a model does not have is an error that names the nearest one that it has, also deep inside a config
file. Lives here: that base, and helpers that several models share. Does not: the models.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

UNKNOWN_KEY = "unknown_key"


def hint(name: object, known: Iterable[str], what: str = "there are") -> str:
    """`; did you mean 'x'?`, or, with nothing near, what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, 1, 0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {what} {', '.join(names)}" if names else ""


class StrictModel(BaseModel):
    """A model that refuses unknown keys by name."""

    model_config = ConfigDict(
        extra="forbid", ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest_key(cls, data: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            details = [_told(detail, cls) for detail in error.errors(include_url=False)]
        # Outside of the handler: pydantic's own sentence about the key would only repeat ours.
        raise ValidationError.from_exception_data(cls.__name__, details)


def _told(detail: Any, model: type[BaseModel]) -> InitErrorDetails:
    kind, loc = detail["type"], detail["loc"]
    told: dict[str, Any] = {"type": kind, "loc": loc, "input": detail["input"]}
    if kind == "extra_forbidden" and len(loc) == 1:
        text = f"unknown key {loc[0]!r} of {model.__name__}{hint(loc[0], model.model_fields)}"
        told["type"] = PydanticCustomError(UNKNOWN_KEY, cast(Any, text))
    elif kind == UNKNOWN_KEY:
        told["type"] = PydanticCustomError(UNKNOWN_KEY, detail["msg"])
    elif "ctx" in detail:
        told["ctx"] = detail["ctx"]
    return cast(InitErrorDetails, told)


def explain(error: ValidationError) -> list[str]:
    """A line for each thing that is wrong: where, and what."""
    return [text for _, text in explain_each(error)]


def explain_each(error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    """The same, with the path of each."""
    lines = []
    for detail in error.errors(include_url=False):
        text = detail["msg"].removeprefix("Value error, ")
        where = show_path(detail["loc"])
        if detail["type"] == "missing":
            text = "this key is required"
        elif detail["type"] not in (UNKNOWN_KEY, "value_error"):
            text = f"{text[:1].lower()}{text[1:]}, got {detail['input']!r}"
        lines.append((detail["loc"], f"{where}: {text}" if where else text))
    return lines


def show_path(path: Iterable[int | str]) -> str:
    """`applications[0].name`"""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return shown.removeprefix(".")


def check_json(name: str, value: Any) -> Any:
    """The value, if JSON can hold it; else ValueError."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be what JSON can hold: {error}") from None
    return value


def check_import_path(path: str) -> str:
    """The path, if it has the form `package.module:attribute` (or with a dot for the colon)."""
    module, _, attribute = split_import_path(path)
    if not module or not attribute or ":" in attribute:
        raise ValueError(f"an import path has the form 'package.module:attribute', got {path!r}")
    return path


def split_import_path(path: str) -> tuple[str, str, str]:
    return path.partition(":") if ":" in path else path.rpartition(".")


def import_attribute(path: str) -> Any:
    """What an import path names.

    Raises ValueError for what is none, ModuleNotFoundError and what importing raises, and AttributeError
    naming the nearest name that the module has.
    """
    name, _, attribute = split_import_path(check_import_path(path))
    thing = importlib.import_module(name)
    for part in attribute.split("."):
        if not hasattr(thing, part):
            known = [n for n in vars(thing) if not n.startswith("_")] if hasattr(thing, "__dict__") else []
            near = difflib.get_close_matches(part, known, 1)
            tip = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"{path!r}: {name} has no {part!r}{tip}")
        thing = getattr(thing, part)
    return thing
