"""Parameters that devices hold a part of each, and gather where a layer computes with them."""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["part"], meta_fields=["axis", "over"]
)
@dataclasses.dataclass(frozen=True)
class Split:
    """Inside `jax.shard_map`, a device's part of a parameter, in the place of the parameter.

    Attributes:
      part: consecutive entries of the array along one axis.
      axis: which, counted from the last one, -1, so that it stands for each layer of a scan too.
      over: the mesh's axis that the others are along.
    """

    part: Any
    axis: int
    over: str


def gathered(parameters: Any) -> Any:
    """The parameters whole; gradients of a part are sums over the devices along its axis."""

    def whole(x: Any) -> Any:
        if not isinstance(x, Split):
            return x
        return lax.all_gather(x.part, x.over, axis=x.part.ndim + x.axis, tiled=True)

    return jax.tree.map(whole, parameters, is_leaf=lambda x: isinstance(x, Split))
