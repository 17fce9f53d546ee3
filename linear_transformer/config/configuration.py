"""Configs as dataclasses, nested dicts and dotted keys."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from linear_transformer.config import schema
from linear_transformer.errors import ConfigError

Config = TypeVar("Config")


def build(cls: type[Config], values: Any, key: str, **extra: Any) -> Config:
    """Makes a config dataclass from the values of its keys.

    Args:
      cls: config dataclass; it calls `schema.check` for its own values.
      values: values of the keys that a config file may set.
      key: key of the section, "" for the experiment itself.
      extra: values of other fields.

    Raises:
      ConfigError: a key is unknown or missing, or a value is invalid; the message names the key.
    """
    prefix = f"config.{key}." if key else "config."
    if not isinstance(values, dict | ml_collections.ConfigDict):
        raise ConfigError(f"{prefix[:-1]} is {values!r}; it must be a section with keys")
    given, known = plain(values), schema.keys(cls)
    for name in given:
        if name not in known:
            raise schema.unknown(prefix + name, known)
    given |= extra
    for name, field in known.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in given and required:
            raise ConfigError(f"{prefix}{name} is missing")
    for name, value in given.items():
        hint = schema.hints(cls)[name]
        schema.check_type(value, hint, prefix + name)
        if type(value) is int and hint in (float, float | None):
            given[name] = float(value) if abs(value) < 10**300 else math.inf
    return cls(**given)


def plain(config: Any) -> Any:
    """Converts a config to nested dicts and tuples, which dataclasses and JSON accept."""
    if isinstance(config, ml_collections.ConfigDict):
        return {name: plain(config[name]) for name in config}
    if isinstance(config, dict):
        return {name: plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return tuple(plain(x) for x in config)
    return config


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
