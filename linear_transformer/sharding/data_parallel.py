"""Data parallelism: each device computes on its own tokens, and sums are added over devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from linear_transformer.data.stream import NO_SEQUENCES, Sequences
from linear_transformer.nn.logical_axes import RULES
from linear_transformer.nn.split import Split, gathered, scatter
from linear_transformer.nn.stack import BLOCKS
from linear_transformer.sharding.mesh import AXES, FSDP, SEQUENCE
from linear_transformer.sharding.placement import batch_spec, specs

WHOLE = PartitionSpec()  # of what is the same on all devices
ROWS = PartitionSpec(RULES["rows"])


class Shards:
    """Parameters and batch of a computation, sharded over the devices of the context's mesh.

    A function of one device runs on all of them by `mapped`, and calls the other methods.  Without
    several devices (apart from "tensor", which the compiler shards), every method returns its
    argument.

    Attributes:
      parameters, batch: PartitionSpecs.
    """

    def __init__(
        self, parameters: Any, declared: Any, batch: Any, sequences: Sequences = NO_SEQUENCES
    ):
        """Finds the shards of parameters and batch.

        Args:
          parameters: all parameters.
          declared: `nn.parameters.declarations` of the parameters.
          batch: arrays of all rows, by name.
          sequences: arrays of the batch that are sharded along time; with NO_SEQUENCES all devices
            along "sequence" compute whole rows.
        """
        self._spread = _spread((*RULES["rows"], *((SEQUENCE,) if sequences.names else ())))
        self.parameters = self.batch = None
        if self._spread:
            self.parameters = specs(jax.sharding.get_abstract_mesh(), parameters, declared)
            self.batch = {name: batch_spec(name, sequences) for name in batch}

    def mapped(self, function: Callable, inputs: Any, outputs: Any) -> Callable:
        """Returns the function of all devices, for a function of one device.

        Args:
          function: function of the shards; it sums over devices by `total` and `gradients`.
          inputs, outputs: PartitionSpecs of its arguments and results.
        """
        if not self._spread:
            return function
        # Beside an axis that the compiler shards, it cannot sum over axes of one device.
        others = _spread([axis for axis in AXES if axis not in self._spread])
        manual = self._spread if others else AXES
        restricted = functools.partial(jax.tree.map, functools.partial(_restricted, axes=manual))
        return jax.shard_map(
            function,
            in_specs=restricted(inputs),
            out_specs=restricted(outputs),
            axis_names=set(manual),
            check_vma=False,  # `function` writes the sums out
        )

    def marked(self, parameters: Any) -> Any:
        """Marks shards of blocks as `Split`, for the blocks to gather; gathers all other shards."""

        def mark(path: Any, x: jax.Array, spec: PartitionSpec) -> jax.Array | Split:
            if FSDP not in spec:
                return x
            part = Split(x, tuple(spec))
            return part if any(entry.key == BLOCKS for entry in path) else gathered(part)

        if not self._spread:
            return parameters
        return jax.tree_util.tree_map_with_path(mark, parameters, self.parameters)

    def key(self, key: jax.Array) -> jax.Array:
        """Returns a key for each shard of the rows: dropout depends on the number of shards."""
        axes = tuple(axis for axis in self._spread if axis in RULES["rows"])
        return jax.random.fold_in(key, lax.axis_index(axes)) if axes else key

    def total(self, sums: Any) -> Any:
        """Adds up sums over devices."""
        return lax.psum(sums, self._spread) if self._spread else sums

    def gradients(self, sums: Any) -> Any:
        """Adds up gradients of `marked` parameters over devices, and shards the sums likewise."""
        others = [axis for axis in self._spread if axis != FSDP]

        def add(x: jax.Array | Split, spec: PartitionSpec) -> jax.Array:
            if FSDP not in spec:
                return self.total(x)
            part = x.part if isinstance(x, Split) else scatter(x, tuple(spec))
            return lax.psum(part, others) if others else part

        if not self._spread:
            return sums
        return jax.tree.map(add, sums, self.parameters, is_leaf=lambda x: isinstance(x, Split))


def _spread(axes: Sequence[str]) -> tuple[str, ...]:
    """Returns those mesh axes that have several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def _restricted(spec: PartitionSpec, axes: Sequence[str]) -> PartitionSpec:
    """Returns a PartitionSpec without the mesh axes that are not in `axes`."""

    def kept(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(axis for axis in part if axis in axes)
        return part if part in axes else None

    return PartitionSpec(*map(kept, spec))
