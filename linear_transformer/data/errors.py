"""Errors about data."""

from linear_transformer.errors import UserError


class DataError(UserError):
    """Mistake in the data or its configuration."""


class FetchError(DataError):
    """Failed download: there is no network, or the source does not answer."""
