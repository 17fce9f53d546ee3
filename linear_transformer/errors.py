"""What a user can do wrong, as exceptions with a one-line message.

The command lines print the line and exit with status 2; no traceback.
"""


class UserError(ValueError):
    """The message is one line that names the key or the file and says what to do."""


class ConfigError(UserError):
    """A mistake in a config or a flag."""


class RunError(Exception):
    """A run that can't go on although its config is right; one line, exit status 1."""
