"""Errors about data."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from linear_transformer.errors import UserError

Entry = TypeVar("Entry")


class DataError(UserError):
    """Mistake in the data or its configuration."""


class FetchError(DataError):
    """Failed download: there is no network, or the source does not answer."""


def lookup(known: Mapping[str, Entry], name: str, key: str) -> Entry:
    """Returns the entry with the name that a config key has.

    Raises:
      DataError: there is no such entry; the message has the key and the known names.
    """
    if name not in known:
        raise DataError(f'{key} = "{name}": unknown; use one of {", ".join(known)}')
    return known[name]


def without_path(load: Callable[[Any], Entry]) -> Callable[[Any], Entry]:
    """Wraps the loader of a data set that has no files of the user, so that it refuses a path."""

    @functools.wraps(load)
    def checked(config: Any) -> Entry:
        if config.path:
            raise DataError(
                f'config.data.path = "{config.path}": {config.dataset} reads no files from there; '
                "config.data.dataset must name the data set of these files"
            )
        return load(config)

    return checked


def split_of(splits: Mapping[str, Entry], split: str, name: str) -> Entry:
    """Returns a split of the data set `name`; raises a DataError for an unknown split."""
    if split not in splits:
        raise DataError(f'unknown split "{split}" of {name}: use {", ".join(splits)}')
    return splits[split]
