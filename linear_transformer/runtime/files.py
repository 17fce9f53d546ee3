"""Small files: JSON that may be damaged, and writes that leave a whole file if they are killed."""

import json
import os
from typing import Any

from etils import epath


def parse_json(text: str) -> Any:
    """Parses JSON; raises a ValueError for any damage, such as brackets nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_json(path: epath.Path, values: object) -> None:
    """Writes a JSON file as `write_text` does."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file atomically: a process that is killed leaves the file of before.

    A link or a device, such as /dev/null or /dev/stdout, stays what it is: the text goes into it.
    """
    path = epath.Path(path)
    # Not `is_file` of etils, which is true for a device.
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        path.write_text(text)
        return
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text)
    partial.replace(path)
