"""Checks of config dataclasses (types, ranges and choices), and the meanings of their keys.

A config dataclass declares `RANGES` and `CHOICES` and calls `check` from `__post_init__`.  Every
message is one line that names the key.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from linear_transformer.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float64")
_TRUE, _FALSE = ("true", "t", "1", "yes", "on"), ("false", "f", "0", "no", "off")
_BY_DATA = "given by the data"
_LONG = 240  # longest list of keys, in characters, that is printed beside a suggestion


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of numbers x with least <= x <= most and above < x < below."""

    least: int | float = -math.inf
    above: int | float = -math.inf
    most: int | float = math.inf
    below: int | float = math.inf

    def __contains__(self, value: int | float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        """Returns the condition in words, as text after "must be"."""
        if self == POSITIVE:
            return "positive"
        if self == FINITE:
            return "finite"
        if self == COUNT:
            return "positive and below 2^31"
        if self.most == self.below == math.inf:
            return f"{self.least} or more"
        low = f"({self.above}" if self.above > -math.inf else f"[{self.least}"
        return f"in {low}, " + (f"{self.below})" if self.below < math.inf else f"{self.most}]")


FINITE = Range()
POSITIVE = Range(above=0)  # sizes and rates
NOT_NEGATIVE = Range(least=0)
COUNT = Range(above=0, below=2**31)  # numbers of steps and rows, which are int32 in programs
COUNT_OR_0 = Range(least=0, below=2**31)
FRACTION = Range(least=0, below=1)
UP_TO_ONE = Range(least=0, most=1)
SEED = Range(least=0, below=2**32)


def by_data(default: Any = dataclasses.MISSING) -> Any:
    """Returns a dataclass field that the task sets from the data, not a key of a config file."""
    return dataclasses.field(default=default, metadata={_BY_DATA: True})


def keys(cls: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a config dataclass that a config file may set, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if _BY_DATA not in f.metadata}


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields, by name."""
    return typing.get_type_hints(cls)


def check(config: Any, key: str) -> None:
    """Checks the values of a config dataclass by the types, RANGES and CHOICES of its class.

    Args:
      config: an instance of the dataclass.
      key: key of the dataclass in the experiment, such as "model"; "" for the experiment itself.

    Raises:
      ConfigError: a value is invalid; the message names its key.
    """
    prefix = f"config.{key}." if key else "config."
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        check_type(value, hints(type(config))[field.name], prefix + field.name)
    for name, allowed in type(config).CHOICES.items():
        check_choice(getattr(config, name), allowed, prefix + name)
    for name, allowed in type(config).RANGES.items():
        check_range(getattr(config, name), allowed, prefix + name)


def check_choice(value: Any, allowed: Iterable[str], key: str) -> None:
    """Raises a ConfigError unless the value is one of the allowed values."""
    if value not in allowed:
        raise ConfigError(f"{key} is {value!r}; choose one of {', '.join(allowed)}")


def check_range(value: Any, allowed: Range, key: str) -> None:
    """Raises a ConfigError unless a number, or each number of a tuple, is in the range."""
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and number not in allowed:
            raise ConfigError(f"{key} is {value}; it must be {allowed}")


def check_type(value: Any, hint: Any, key: str) -> None:
    """Raises a ConfigError unless the value has the type; a float may be given as an int."""
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        for name, x in value.items():
            check_type(x, typing.get_args(hint)[1], f"{key}.{name}")
    elif not _is_of(value, hint):
        raise ConfigError(
            f"{key} is {value!r}, a {type(value).__name__}; it must be {_type_name(hint)}"
        )


def _is_of(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(x, parts[0]) for x in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(_is_of(x, parts[1]) for x in value.values())
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (types.NoneType if hint is None else hint)


def _type_name(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_type_name, parts))
    if origin is tuple:
        return f"a tuple of {_type_name(parts[0])}"
    if origin is dict:
        return "a dict"
    return "None" if hint in (None, types.NoneType) else getattr(hint, "__name__", str(hint))


def parse(text: str, hint: Any, flag: str) -> Any:
    """Parses the text of a flag as a value of the given type.

    Args:
      text: the text after the "=".
      hint: type of the value.
      flag: the flag as the user wrote it, for the error message.

    Raises:
      ConfigError: the text is not a value of this type.
    """
    for part in _alternatives(hint):
        value = _parse_as(text, part)
        if value is not _NO_VALUE:
            return value
    raise ConfigError(f"{flag}: wrong type, must be {_type_name(hint)}")


_NO_VALUE = object()


def _alternatives(hint: Any) -> list[Any]:
    """Returns the types of a union, None before str and int before float."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = list(typing.get_args(hint)) if union else [hint]
    order = [types.NoneType, bool, int, float]
    return sorted(parts, key=lambda part: order.index(part) if part in order else len(order))


def _parse_as(text: str, hint: Any) -> Any:
    if hint is str:
        return text
    if hint is bool:
        lower = text.lower()
        return lower in _TRUE if lower in (*_TRUE, *_FALSE) else _NO_VALUE
    if hint is types.NoneType:
        return None if text.lower() == "none" else _NO_VALUE
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return _NO_VALUE
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if hint is Any:
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):  # names without quotes: gla,softmax
            value = [part.strip(" '\"") for part in value.strip("()[] ").split(",") if part.strip()]
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        value = tuple(tuple(x) if isinstance(x, list) else x for x in value)
    return value if _is_of(value, hint) else _NO_VALUE


def unknown(key: str, allowed: Collection[str]) -> ConfigError:
    """Returns the error for a key that does not exist, with a suggestion.

    Args:
      key: dotted key, shown in the message; its section is the part before the last dot.
      allowed: names of the keys in the section.
    """
    name = key.rpartition(".")[2]
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = ", ".join(sorted(allowed)) or "none"
    if not near or len(listed) < _LONG:
        hint += f"{'' if near else ';'} There are {listed}"
    return ConfigError(f"{key}: no such key{hint}")


@functools.cache
def meanings(made_by: Any) -> Mapping[str, str]:
    """Returns the first sentence of the docstring about each attribute or argument, by name.

    Args:
      made_by: a class, including its bases, or a function.
    """
    classes = inspect.getmro(made_by) if inspect.isclass(made_by) else (made_by,)
    found: dict[str, str] = {}
    for documented in reversed(classes):
        found |= _section(inspect.cleandoc(documented.__doc__ or ""))
    return found


_ENTRY = re.compile(r"^(\w+(?:, \w+)*)(?: \([^)]*\))?: *(.*)$")


def _section(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    indent = None  # indentation of the entries
    inside = False
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip() in ("Attributes:", "Args:") and depth == 0:
            inside, indent = True, None
        elif line.strip() and depth == 0:
            inside = False
        elif inside and line.strip():
            indent = depth if indent is None else indent
            entry = _ENTRY.match(line.strip()) if depth == indent else None
            if entry:
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: _first_sentence(text) for name, text in found.items()}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!\bal)(?<![A-Z])\.\s", " ".join(text.split()))[0].rstrip(".")
