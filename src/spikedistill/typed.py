"""A constructor's typed signature as a schema: one place that turns mappings from YAML into checked arguments."""

import inspect
import typing
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError

from .errors import SpikedistillError, nearest


def whole_numbers(cls: type[BaseModel], values: Any) -> Any:
    """For a validator before all others: ``true`` is no number (YAML's ``validation: true`` is not 1)."""
    if isinstance(values, Mapping):
        for name, field in cls.model_fields.items():
            for key in (name, field.alias):
                value = values.get(key) if key is not None else None
                each = value if isinstance(value, list | tuple) else [value]
                if any(isinstance(v, bool) for v in each) and not _takes_bool(field.annotation):
                    raise PydanticCustomError(
                        "no_number", "{key}: {value} is no number", {"key": key, "value": str(value).lower()}
                    )
    return values


def _takes_bool(annotation: Any) -> bool:
    if annotation in (bool, Any, object):
        return True
    if any(value is True or value is False for value in typing.get_args(annotation)):
        return True
    return any(_takes_bool(inner) for inner in typing.get_args(annotation))


class Numbers(BaseModel):
    """Numbers are finite, and ``true`` is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, values: Any) -> Any:
        return whole_numbers(cls, values)


class _Options(Numbers):
    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), allow_inf_nan=False
    )


@cache
def model_of(target: Any, leave_out: tuple[str, ...] = ()) -> type[BaseModel]:
    """A pydantic model whose fields are the parameters of ``target`` without ``leave_out``.

    ``target``: a function, a class (its constructor's are meant), or a ``partial`` of one.
    """
    inner = target.func if isinstance(target, partial) else target
    hints = typing.get_type_hints(inner.__init__ if inspect.isclass(inner) else inner)
    fields: dict[str, Any] = {}
    for name, p in inspect.signature(target).parameters.items():
        if name in leave_out or p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        fields[name] = (hints.get(name, Any), ... if p.default is p.empty else p.default)
    return create_model(getattr(inner, "__name__", "Options").title(), __base__=_Options, **fields)


def checked(target: Any, given: Mapping[str, Any], where: str, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """``given`` as arguments for ``target``, converted and checked; ``where`` begins every error."""
    model = model_of(target, tuple(leave_out))
    try:
        value = model.model_validate(dict(given))
    except ValidationError as error:
        raise SpikedistillError(words(error, where, model.model_fields)) from None
    return {name: getattr(value, name) for name in value.model_fields_set}


def words(error: ValidationError, where: str, known: Iterable[str] = ()) -> str:
    """The first complaint of a pydantic error as one sentence: path, found, allowed, nearest name."""
    first = error.errors()[0]
    path = ".".join([where, *(str(p) for p in first["loc"])]) if where else ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{path}: unknown key {str(first['loc'][-1])!r}; {nearest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{path}: missing; it has no default"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: found {first['input']!r}; {message[0].lower()}{message[1:]}"
