"""Logical axes of parameters and activations, and the mesh axes that shard them.

The mesh is set by the context, `jax.set_mesh`; `sharding.mesh` describes its axes.
"""

import math

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from linear_transformer.nn import split
from linear_transformer.ops import sequence_parallel

# Mesh axis (or axes) over which each logical axis is sharded.
RULES: dict[str, str | tuple[str, ...]] = {
    "rows": ("data", split.AXIS),  # sequences of a batch
    "time": sequence_parallel.AXIS,
    "vocabulary": "tensor",
    "feed_forward": "tensor",
    "heads": "tensor",
    "embed": split.AXIS,  # of parameters only: activations hold all features of the stream
}


def named(x: Array, *names: str | None) -> Array:
    """Constrains the sharding of an activation as RULES say, on mesh axes that XLA controls.

    Mesh axes of an enclosing `jax.shard_map` are left out.  An array axis named None stays whole;
    XLA chooses the sharding of an axis that the devices do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    by_compiler = {axis for axis, type_ in types.items() if type_ == AxisType.Auto}

    def part(name: str | None, size: int) -> object:
        over = RULES[name] if name else ()
        over = over if isinstance(over, tuple) else (over,)
        over = tuple(axis for axis in over if axis in by_compiler and mesh.shape[axis] > 1)
        fits = size % math.prod(mesh.shape[axis] for axis in over) == 0
        return over if fits else PartitionSpec.UNCONSTRAINED

    if all(mesh.shape[axis] == 1 for axis in by_compiler):
        return x
    spec = PartitionSpec(*(part(name, n) for name, n in zip(names, x.shape, strict=True)))
    return lax.with_sharding_constraint(x, spec)
