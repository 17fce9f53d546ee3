"""Names of what the axes of parameters and activations are, and what devices split them.

The mesh is that of the context, `jax.set_mesh`; `sharding.mesh` tells what its axes mean.
"""

import math

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from linear_transformer.nn import split
from linear_transformer.ops import sequence_parallel

# The axis of the mesh, or the axes, that each is split over.
RULES: dict[str, str | tuple[str, ...]] = {
    "rows": ("data", split.AXIS),  # of a batch
    "time": sequence_parallel.AXIS,
    "vocabulary": "tensor",
    "feed_forward": "tensor",
    "heads": "tensor",
    "embed": split.AXIS,  # of a parameter: activations have all features of the stream
}


def named(x: Array, *names: str | None) -> Array:
    """The activation, with the axes of these names split as RULES say, where XLA splits arrays.

    It does over the axes of the mesh that no `jax.shard_map` around has taken.  An axis without a
    name is whole; one that the devices do not divide stays as XLA likes it.
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
