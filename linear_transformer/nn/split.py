"""Sharded parameters: a device holds one shard of each, and a layer gathers the whole for use."""

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
    """Shard of a parameter on one device, in place of the parameter inside `jax.shard_map`.

    Attributes:
      part: consecutive entries of the array along one axis.
      axes: mesh axis that shards each axis of the array, or None.  Axes are counted from the last
        one, so that they also hold for one layer of a scan.
    """

    part: Any
    axes: tuple[str | None, ...]


def gathered(parameters: Any) -> Any:
    """Returns parameters gathered along AXIS; the gradient of a shard is summed over devices."""

    def whole(x: Any) -> Any:
        return gather(x.part, x.axes) if isinstance(x, Split) else x

    return jax.tree.map(whole, parameters, is_leaf=lambda x: isinstance(x, Split))


def gather(part: Array, axes: tuple[str | None, ...]) -> Array:
    """Gathers the shards of all devices along AXIS."""
    axes = axes[-part.ndim :]
    collective = functools.partial(lax.all_gather, axis=axes.index(AXIS), tiled=True)
    return _alone(collective, part, axes)


def scatter(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Returns this device's shard of the sum over all devices along AXIS."""
    dimension = axes.index(AXIS)
    collective = functools.partial(lax.psum_scatter, scatter_dimension=dimension, tiled=True)
    return _alone(collective, x, axes)


def _alone(collective: Callable[..., Array], x: Array, axes: tuple[str | None, ...]) -> Array:
    """Applies a collective to each device's own shard over the other mesh axes.

    The compiler shards arrays over "tensor"; without this function it would undo that sharding for
    a collective over another axis.
    """
    own = PartitionSpec(*(None if axis == AXIS else axis for axis in axes))
    call = functools.partial(collective, axis_name=AXIS)
    names = {axis for axis in own if axis is not None}
    if not names:
        return call(x)
    return jax.shard_map(call, in_specs=own, out_specs=own, axis_names=names, check_vma=False)(x)
