"""A constructor's typed signature as a schema, and what is wrong with YAML's mapping in words for people."""

import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, create_model, model_validator
from pydantic_core import PydanticCustomError

from .errors import SpikedistillError, nearest

Model = TypeVar("Model", bound=BaseModel)

# Our own complaints are whole sentences already; what pydantic says needs a place and what was found.
SENTENCE = "sentence"


def complaint(sentence: str, *place: str) -> ValidationError:
    """For a validator: what is wrong, at a place below the value that it is given."""
    # A ValidationError of pydantic's own: only that keeps its place when a validator raises it.
    error = PydanticCustomError(SENTENCE, "{sentence}", {"sentence": sentence})
    return ValidationError.from_exception_data("value", [{"type": error, "loc": place, "input": None}])


class Strict(BaseModel):
    """Unknown keys are errors, numbers are finite, ``true`` is no number (``validation: true`` is not 1)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def keys_known(cls) -> list[str]:
        """What may stand in the mapping."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def unknown_key(cls, key: str, values: Mapping[str, Any]) -> ValidationError:
        """What is said of a key that the mapping does not take."""
        return complaint(f"unknown key {key!r}; {nearest(key, cls.keys_known())}")

    @model_validator(mode="before")
    @classmethod
    def _keys_and_numbers(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields | {f.alias: f for f in cls.model_fields.values() if f.alias is not None}
        for key, value in values.items():
            if key not in fields:
                if cls.model_config.get("extra") == "forbid":
                    raise cls.unknown_key(str(key), values)
                continue
            # In python a bool is an int, and pydantic lets it pass as 1.
            each = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(v, bool) for v in each) and not _takes_bool(fields[key].annotation):
                raise complaint(f"{str(value).lower()} is no number", str(key))
        return values


def _takes_bool(annotation: Any) -> bool:
    if annotation in (bool, Any, object):
        return True
    if any(value is True or value is False for value in typing.get_args(annotation)):
        return True
    return any(_takes_bool(inner) for inner in typing.get_args(annotation))


class Options(Strict, Mapping[str, Any]):
    """Typed values that read as the mapping of what was given: ``f(**options)`` leaves defaults to ``f``.

    The fields themselves are attributes, defaults included.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, protected_namespaces=(), use_attribute_docstrings=False
    )

    def __getitem__(self, key: str) -> Any:
        # Defaults that nobody gave are no keys: `f(**options)` must see the defaults of `f`.
        if key not in self.model_fields_set:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return (
            name
            for name in (*type(self).model_fields, *(self.model_extra or ()))
            if name in self.model_fields_set
        )

    def __len__(self) -> int:
        return len(self.model_fields_set)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping) and not isinstance(other, Options):
            return dict(self) == dict(other)
        return super().__eq__(other)


class Arguments(Options):
    """What a signature takes."""

    @classmethod
    def unknown_key(cls, key: str, values: Mapping[str, Any]) -> ValidationError:
        """The same, at the place of the key."""
        return complaint(f"unknown key {key!r}; {nearest(key, cls.keys_known())}", key)


class Choice(Arguments):
    """Options with keys that depend on their use: a class with ``chosen`` picks the model per mapping.

    The models are subclasses of it, made by :func:`model_of` from the signature of what will be built.
    """

    @classmethod
    def chosen(cls, given: Mapping[str, Any], info: ValidationInfo) -> "type[Self]":
        """The model for ``given``; raises SpikedistillError, or :func:`complaint`, for what names nothing."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> "list[type[Self]]":
        """The models that an editor should know of."""
        raise NotImplementedError

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, given: Any, handler: Any, info: ValidationInfo) -> Any:
        # Asked of the class alone: the models that are chosen inherit it, and would choose without end.
        if "chosen" in vars(cls) and isinstance(given, Mapping) and not isinstance(given, cls):
            return cls.chosen(given, info).model_validate(given, context=info.context)
        return handler(given)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        if "chosen" in vars(cls):
            # A reference makes each a definition of its own, by its name.
            refs = ((model, f"{model.__module__}.{model.__name__}:{id(model)}") for model in cls.examples())
            models = [{**model.__pydantic_core_schema__, "ref": ref} for model, ref in refs]
            return handler({"type": "union", "choices": models})
        return handler(core_schema)


# Kept: to build a model is slow beside its use, and every stage and objective asks for some.
@cache
def model_of(
    target: Any,
    leave_out: tuple[str, ...] = (),
    base: type[Model] = Arguments,  # type: ignore[assignment]
    title: str | None = None,
    **more: Any,
) -> type[Model]:
    """A pydantic model whose fields are those of ``base`` and parameters of ``target`` without ``leave_out``.

    ``target``: a function, a class (its constructor's are meant), or a ``partial`` of one. ``title``: of the
    model; ``more``: types of further fields.
    """
    inner = target.func if isinstance(target, partial) else target
    try:
        hints = typing.get_type_hints(inner.__init__ if inspect.isclass(inner) else inner)
    # words of somebody's own that mean nothing when read: the names alone are checked
    except (NameError, TypeError):
        hints = {}
    fields: dict[str, Any] = {key: (annotation, ...) for key, annotation in more.items()}
    for parameter, p in inspect.signature(target).parameters.items():
        if parameter in leave_out or p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        words = p.annotation is p.empty or isinstance(p.annotation, str)
        annotation = hints.get(parameter, Any if words else p.annotation)
        fields[parameter] = (annotation, ... if p.default is p.empty else p.default)
    title = title or getattr(inner, "__name__", "Options").title()
    return create_model(
        title, __base__=base, __doc__=(inner.__doc__ or "").strip().partition("\n")[0], **fields
    )


def checked(target: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``given`` as arguments for ``target``, converted and checked; ``where`` begins every error."""
    return dict(read(model_of(target), given, where))


def read(model: type[Model], given: Any, where: str, context: Any = None) -> Model:
    """``given`` as ``model``. Raises: SpikedistillError with the first complaint, which ``where`` begins."""
    try:
        return model.model_validate(given, context=context)
    except ValidationError as error:
        raise SpikedistillError(words(error, where, given)) from None


def parse(model: type[Model], given: Any, where: str) -> Model:
    """``given`` as ``model``. Raises: SpikedistillError with all complaints, a line each, from ``where``."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        known = model.keys_known() if issubclass(model, Strict) else list(model.model_fields)
        raise SpikedistillError("\n".join(f"{where}: {line}" for line in lines(error, known))) from None


def words(error: ValidationError, where: str = "", given: Any = None) -> str:
    """The first complaint of a pydantic error as one sentence: place, found, allowed, nearest name."""
    first = error.errors()[0]
    path = place(first["loc"], where, given)
    if (ours := _sentence(first)) is not None:
        # Checks of a whole part name their place themselves.
        return ours if path and ours.startswith(path) else f"{path or 'recipe'}: {ours}"
    if first["type"] == "missing":
        return f"{path}: missing; it has no default"
    # Where one of several types may stand each of them complains, at a place that ends with its tag.
    several = [
        e for e in error.errors() if e["loc"][:-1] == first["loc"][:-1] and e["input"] is first["input"]
    ]
    if len(several) > 1:
        path = place(first["loc"][:-1], where, given)
    message = first["msg"].removeprefix("Value error, ")
    others = dict.fromkeys(
        _KIND.get(e["type"], e["msg"]).removeprefix("Input should be ") for e in several[1:]
    )
    rest = "".join(f", or {other}" for other in others)
    return f"{path}: found {first['input']!r}; {message[0].lower()}{message[1:]}{rest}"


_KIND = {"bool_parsing": "true or false", "int_parsing": "a whole number", "float_parsing": "a number"}


def _sentence(complaint: Any) -> str | None:
    cause = complaint.get("ctx", {}).get("error")
    if complaint["type"] == SENTENCE or isinstance(cause, SpikedistillError):
        return str(cause or complaint["msg"])
    return None


def place(loc: Sequence[int | str], where: str = "", given: Any = None) -> str:
    """A path in words: stages by their name, other mappings of a list by ``[number]``."""
    path, here, before = where, given, None
    # pydantic's place also names things that are not in the mapping; from there on nothing is looked up.
    for part in loc:
        known = isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        here = here[part] if known else here.get(part) if isinstance(here, Mapping) else None
        if isinstance(part, int) and isinstance(here, Mapping) and before != "stages":
            path += f"[{part}]"
        else:
            named = isinstance(part, int) and isinstance(here, Mapping) and here.get("name")
            path += f"{path and '.'}{named or part}"
        before = part
    return path


def lines(error: ValidationError, known: Iterable[str] = ()) -> list[str]:
    """Each complaint of a pydantic error as a line: key, fault, what was found.

    ``known``: the keys of a mapping.
    """
    found = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        prefix, message = f"{path}: " if path else "", item["msg"].removeprefix("Value error, ")
        if item["type"] == "unexpected_keyword_argument":
            found.append(f"unknown key {path!r}; {nearest(str(item['loc'][-1]), known)}")
        elif item["type"] in ("missing", "missing_argument"):
            found.append(f"{path} is missing")
        elif item["type"] in ("model_type", "dict_type", "mapping_type"):
            found.append(
                f"{prefix}a mapping of keys is needed, {', '.join(known)}; found {item['input']!r:.80}"
            )
        elif item["type"] in ("value_error", SENTENCE):
            found.append(prefix + message)
        else:
            found.append(f"{prefix}{message} (found {item['input']!r:.80})")
    return found
