"""Run folder: the path of --workdir; by default a folder named after config and changed keys."""

import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from linear_transformer.errors import ConfigError

_RUNS = "runs"  # in the current folder
_CONFIGS = "configs"
_LONGEST = 150  # characters of a folder's name


def default(config_path: str, changes: Mapping[str, Any]) -> str:
    """Returns the default run folder, a different one for each config, variant and change.

    `configs/lm/shakespeare.py:softmax` with `model.width` changed to 512 trains in
    `runs/lm/shakespeare-softmax-width=512`.

    Args:
      config_path: value of `--config`. Of a file outside of `configs` and of the current folder,
        only the name is used, so that nothing is written beside it.
      changes: new values by key of the config, without "config.".
    """
    path, _, variant = config_path.partition(":")
    *parents, name = _parts(pathlib.PurePath(os.path.abspath(path)).with_suffix(""))
    changed = (f"{key.rpartition('.')[2]}={_text(changes[key])}" for key in sorted(changes))
    name = "-".join(filter(None, map(_safe, (name, variant, *changed))))
    if len(name) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST]}-{digest}"
    return str(pathlib.PurePath(_RUNS, *parents, name))


def path_of(workdir: str) -> epath.Path:
    """Returns the path of `--workdir`, with "~" as the home folder, which shells do not replace.

    Raises:
      ConfigError: the name is not UTF-8, or is of a file system that can't be written.
    """
    try:
        workdir.encode()
        return epath.Path(workdir).expanduser()
    except UnicodeEncodeError as error:
        raise ConfigError(f"--workdir={workdir}: not UTF-8") from error
    except KeyError as error:
        raise ConfigError(f"--workdir={workdir}: there is no file system {error}") from error


def free(workdir: epath.Path) -> epath.Path:
    """Returns a folder beside `workdir` that does not exist: `workdir-2`, `workdir-3`, ..."""
    number = 2
    while (candidate := workdir.with_name(f"{workdir.name}-{number}")).exists():
        number += 1
    return candidate


def _parts(path: pathlib.PurePath) -> tuple[str, ...]:
    """Returns the path below `configs`, else below the current folder, else its last part."""
    inside = path.is_relative_to(pathlib.Path.cwd())
    parts = path.relative_to(pathlib.Path.cwd()).parts if inside else path.parts
    if _CONFIGS in parts[:-1]:
        return parts[len(parts) - parts[::-1].index(_CONFIGS) :]
    return parts if inside else parts[-1:]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _safe(part: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", part, flags=re.ASCII).strip("_")
