"""Configs that come with the project: `configs/...`, with or without a clone.

A clone has the configs beside the package, a wheel has them inside the package. A file with the
same path in the current folder takes precedence, so users can change a copy. Config files import
each other with `from configs import default`, in a clone and in an installed package.
"""

import importlib.machinery
import importlib.util
import pathlib
import sys

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
NAME = "configs"
FOLDER = next(f for f in (_PACKAGE / NAME, _PACKAGE.parent / NAME) if f.is_dir())


def find(path: str) -> str:
    """Returns the path of a config in the current folder if it exists, else of a shipped config.

    Args:
      path: a file or folder, with or without `:variant`.

    Returns:
      The path with its variant; the unchanged path if neither folder has the config.
    """
    name, colon, variant = path.partition(":")
    parts = pathlib.PurePath(name).parts
    if parts[:1] == (NAME,) and not pathlib.Path(name).exists():
        shipped = FOLDER.joinpath(*parts[1:])
        if shipped.exists():
            return f"{shipped}{colon}{variant}"
    return path


def find_in_arguments(arguments: list[str]) -> list[str]:
    """Replaces the path in `--config=PATH` or `--config PATH` by the result of `find`."""
    found = []
    for argument in arguments:
        flag, equals, path = argument.partition("=")
        if equals and flag in ("--config", "-config"):
            argument = f"{flag}={find(path)}"
        elif found and found[-1] in ("--config", "-config"):
            argument = find(argument)
        found.append(argument)
    return found


def make_importable() -> None:
    """Makes `configs` importable: first from the current folder, then from the shipped configs."""
    if NAME in sys.modules:
        return
    spec = importlib.machinery.ModuleSpec(NAME, None, is_package=True)
    folders = (pathlib.Path(NAME).resolve(), FOLDER)
    spec.submodule_search_locations = [str(f) for f in dict.fromkeys(folders) if f.is_dir()]
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
