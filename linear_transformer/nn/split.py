"""Parameters that devices hold a part of each, and gather where a layer computes with them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

AXIS = "fsdp"  # of the mesh


@functools.partial(jax.tree_util.register_dataclass, data_fields=["part"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class Split:
    """Inside `jax.shard_map`, a device's part of a parameter, in the place of the parameter.

    Attributes:
      part: consecutive entries of the array along one axis.
      axes: of the mesh, that each axis of the array is split over, or None.  They are counted from
        the last one, so that they stand for each layer of a scan too.
    """

    part: Any
    axes: tuple[str | None, ...]


def gathered(parameters: Any) -> Any:
    """The parameters whole along AXIS; the gradient of a part is the sum over the devices."""

    def whole(x: Any) -> Any:
        return gather(x.part, x.axes) if isinstance(x, Split) else x

    return jax.tree.map(whole, parameters, is_leaf=lambda x: isinstance(x, Split))


def gather(part: Array, axes: tuple[str | None, ...]) -> Array:
    """The parts of all devices along AXIS."""
    axes = axes[-part.ndim :]
    collective = functools.partial(lax.all_gather, axis=axes.index(AXIS), tiled=True)
    return _alone(collective, part, axes)


def scatter(x: Array, axes: tuple[str | None, ...]) -> Array:
    """This device's part of the sum over all devices along AXIS."""
    dimension = axes.index(AXIS)
    collective = functools.partial(lax.psum_scatter, scatter_dimension=dimension, tiled=True)
    return _alone(collective, x, axes)


def _alone(collective: Callable[..., Array], x: Array, axes: tuple[str | None, ...]) -> Array:
    """The collective on each device's own part of the array.

    The compiler splits arrays over "tensor"; left to itself it undoes that for a collective over
    another axis.
    """
    own = PartitionSpec(*(None if axis == AXIS else axis for axis in axes))
    call = functools.partial(collective, axis_name=AXIS)
    names = {axis for axis in own if axis is not None}
    if not names:
        return call(x)
    return jax.shard_map(call, in_specs=own, out_specs=own, axis_names=names, check_vma=False)(x)
