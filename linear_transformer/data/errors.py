"""What a user can do wrong with data, as an exception with a one-line message."""


class DataError(ValueError):
    """A mistake in the data or its configuration.

    The message is one line that names the key or the file and says what to do.
    """


class FetchError(DataError):
    """A file could not be downloaded: no network, or the source does not answer."""
