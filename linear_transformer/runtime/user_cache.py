"""Cache folder of the user, for fetched data and compiled programs."""

import os
import pathlib


def cache_dir() -> pathlib.Path:
    """Returns `$LINEAR_TRANSFORMER_CACHE`, or linear_transformer in the XDG cache (~/.cache).

    Raises:
      RuntimeError: the user has no home.
    """
    if configured := os.environ.get("LINEAR_TRANSFORMER_CACHE"):
        return pathlib.Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG specification, relative paths are ignored.
    folder = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return folder / "linear_transformer"
