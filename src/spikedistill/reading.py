"""Text, YAML and JSON of files that anybody may have written: read within bounds, refused in one line."""

import json
import os
from typing import Any

import yaml

from .errors import SpikedistillError

MAX_BYTES = 16 << 20  # of a text file
MAX_YAML_BYTES = 2 << 20  # PyYAML reads about 100 kB a second
MAX_VALUES = 200_000  # of one YAML document, aliases written out
MAX_DEPTH = 40  # of mappings and lists within each other
MAX_INTEGER = 1 << 64


def read_text(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> str:
    """The UTF-8 text of a file of at most ``limit`` bytes.

    Raises: SpikedistillError for a missing or unreadable file, one that is too large, or no text.
    """
    try:
        with open(path, "rb") as file:
            # One byte more tells a file that is too large, without asking for its size (a pipe has none).
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise SpikedistillError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    if len(data) > limit:
        raise SpikedistillError(f"{path}: more than {limit >> 20} MiB of text; is it the right file?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpikedistillError(f"{path}: no UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise SpikedistillError(f"{path}: holds null bytes, so it is no text file")
    return text


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value of a file, as :func:`parse_json` reads it."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON value. Raises: SpikedistillError that begins with ``where``, also for too deep nesting."""
    try:
        return _plain(json.loads(text))
    except RecursionError:
        raise SpikedistillError(f"{where}: not JSON that can be read: nested too deep") from None
    except ValueError as error:
        raise SpikedistillError(f"{where}: not JSON: {_line(error)}") from None


def parse_yaml(text: str, where: str, words: str = "not readable as YAML", column: bool = True) -> Any:
    """A YAML document of mappings, lists, texts, numbers, true, false and null; aliases become copies.

    Raises: SpikedistillError that begins with ``where`` and ``words`` and names line and column: for what is
    no YAML, for more than 200,000 values (aliases written out) or 40 levels, an alias of what it stands in,
    and values of other types.
    """
    try:
        loader = _Bounded(text)
    except yaml.YAMLError as error:  # characters that YAML has not
        raise SpikedistillError(f"{where}: {words}: {_line(error)}") from None
    try:
        return _plain(loader.get_single_data())
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError, LookupError, TypeError) as error:
        # all but the first come from constructors of scalars: a date of month 13, a number of 5,000 digits
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}" + (f", column {mark.column + 1}" if column else "") if mark else ""
        raise SpikedistillError(f"{where}: {words}: {_line(error)}{at and f' ({at})'}") from None
    finally:
        loader.dispose()


class _Bounded(yaml.SafeLoader):
    """PyYAML's safe loader, which also counts: aliases cost as many values as they stand for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth, self.values = 0, 0
        self.sizes: dict[int, int] = {}  # values of a whole node; a node that is being read has none yet

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Looked at first: composing takes the event away.
        alias = self.check_event(yaml.AliasEvent)
        mark, before = self.peek_event().start_mark, self.values
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        # Followed, it would never end; a node has its size only once all that is in it was read.
        if alias and id(node) not in self.sizes:
            raise yaml.MarkedYAMLError(problem="an alias of the value that it stands in", problem_mark=mark)
        # A few hundred bytes of nested aliases stand for billions of values.
        self.values += self.sizes[id(node)] if alias else 1
        if self.values > MAX_VALUES:
            words = f"more than {MAX_VALUES:,} values, aliases written out"
            raise yaml.MarkedYAMLError(problem=words, problem_mark=mark)
        self.sizes.setdefault(id(node), self.values - before)
        return node


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy without shared parts, so a change of one place leaves the others; refuses what JSON has not."""
    if depth > 2 * MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        return {_scalar(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        value.encode("utf-8")  # raises for half of a surrogate pair
    elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    elif value is not None and not isinstance(value, int | float):
        raise ValueError(f"a value of type {type(value).__name__}; for a text put it in quotes")
    return value


def _line(error: Exception) -> str:
    """What is wrong, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
