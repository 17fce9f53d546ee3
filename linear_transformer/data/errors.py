"""Errors about data."""

from linear_transformer.errors import UserError


class DataError(UserError):
    """A mistake in the data or its configuration."""


class FetchError(DataError):
    """A file could not be downloaded: no network, or the source does not answer."""
