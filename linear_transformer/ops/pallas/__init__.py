"""Chunk forms as TPU kernels: a state stays in VMEM from the first chunk of a sequence to the last.

`chunk_scan` runs over the chunks, forward and backward, in the blocks of `layout`; `additive`,
`decay` and `delta` have the mathematics of one chunk of one head; `arithmetic` has their shared
parts.  `additive`, `decay` and `delta` are imported at their first use, because importing Pallas
takes time and most programs have no kernel.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linear_transformer.ops.pallas import additive, decay, delta

__all__ = ["additive", "decay", "delta"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
