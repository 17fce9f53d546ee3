"""Linear-attention transformers in JAX and Flax.

The public names are listed in `__init__.pyi`, which type checkers read. Each name is imported at
its first use. So `import linear_transformer` is instant, and an operation needs neither Flax nor
the packages that read data.
"""

import ast
import importlib
import pathlib
from typing import Any

__version__ = "0.1.0"


def _declared() -> dict[str, str]:
    """Returns the module of each public name, read from the stub file."""
    tree = ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text())
    return {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


_MODULES = _declared()
# Type checkers get the names from the stub file.
__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
