"""Exceptions for mistakes of the user, each with a one-line message.

The command-line programs print the message without a traceback and exit with status 2.
"""


class UserError(ValueError):
    """Mistake of the user; the message is one line that names the key or file and the remedy."""


class ConfigError(UserError):
    """Mistake in a config or a flag."""


class RunError(Exception):
    """Failure of a run with a correct config; one-line message, exit status 1."""
