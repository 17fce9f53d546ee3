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


def sum_over_devices(
    sums: Callable[..., Any], declared: Any, sequences: Sequences = NO_SEQUENCES
) -> Callable[..., Any]:
    """Extends `sums(parameters, rows, key) -> (gradients, others)` to the tokens of all devices.

    The devices are the mesh of the context; without a mesh, the result is `sums` itself.  Gradients
    are sums over tokens, sharded like the parameters; other sums, like metrics, are whole.  Each
    shard of the rows has its own key, so that dropout depends on the number of shards.

    Args:
      sums: function of one device and its tokens.
      declared: `nn.parameters.declarations` of the parameters.
      sequences: see `placement.put_batch`.
    """

    def total(x: Any, axes: Sequence[str]) -> Any:
        return lax.psum(x, axes) if axes else x

    def on_all_devices(parameters: Any, batch: Any, key: jax.Array) -> Any:
        spread = _spread((*RULES["rows"], SEQUENCE))
        if not spread:  # only "tensor" is left, which the compiler shards
            return sums(parameters, batch, key)
        row_axes = tuple(axis for axis in spread if axis in RULES["rows"])
        axes = specs(jax.sharding.get_abstract_mesh(), parameters, declared)

        def scattered(x: jax.Array | Split, spec: PartitionSpec) -> jax.Array:
            if FSDP not in spec:
                return total(x, spread)
            x = x.part if isinstance(x, Split) else scatter(x, tuple(spec))
            return total(x, [axis for axis in spread if axis != FSDP])

        def on_one_device(parameters: Any, batch: Any, key: jax.Array) -> Any:
            if row_axes:
                key = jax.random.fold_in(key, lax.axis_index(row_axes))
            gradients, others = sums(_marked(parameters, axes), batch, key)
            gradients = jax.tree.map(
                scattered, gradients, axes, is_leaf=lambda x: isinstance(x, Split)
            )
            return gradients, total(others, spread)

        whole = PartitionSpec()
        inputs = (axes, {name: batch_spec(name, sequences) for name in batch}, whole)
        return _shard_map(on_one_device, spread, inputs, (axes, whole))(parameters, batch, key)

    return on_all_devices


def _spread(axes: Sequence[str]) -> tuple[str, ...]:
    """Returns those mesh axes that have several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def _shard_map(function: Callable, spread: tuple[str, ...], inputs: Any, outputs: Any) -> Callable:
    """Maps `function`, which sums over the mesh axes `spread` itself, over the shards.

    `inputs` and `outputs` are PartitionSpecs.
    """
    # Beside an axis that the compiler shards, it cannot sum over axes of one device.
    manual = spread if _spread([axis for axis in AXES if axis not in spread]) else AXES
    restricted = functools.partial(jax.tree.map, functools.partial(_restricted, axes=manual))
    return jax.shard_map(
        function,
        in_specs=restricted(inputs),
        out_specs=restricted(outputs),
        axis_names=set(manual),
        check_vma=False,  # `function` writes the sums out
    )


def _restricted(spec: PartitionSpec, axes: Sequence[str]) -> PartitionSpec:
    """Returns a PartitionSpec without the mesh axes that are not in `axes`."""

    def kept(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(axis for axis in part if axis in axes)
        return part if part in axes else None

    return PartitionSpec(*map(kept, spec))


def _marked(parameters: Any, axes: Any) -> Any:
    """Marks shards of blocks as `Split`, for the blocks to gather, and gathers all other shards.

    Args:
      axes: the `specs` of the parameters.
    """

    def mark(path: Any, x: jax.Array, spec: PartitionSpec) -> jax.Array | Split:
        if FSDP not in spec:
            return x
        part = Split(x, tuple(spec))
        return part if any(entry.key == BLOCKS for entry in path) else gathered(part)

    return jax.tree_util.tree_map_with_path(mark, parameters, axes)


def over_devices(
    function: Callable[[Any, Any], tuple[Any, Any]],
    declared: Any,
    sequences: Sequences = NO_SEQUENCES,
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Extends `function(parameters, batch) -> (sums, rows)` to the rows of all devices.

    The devices are the mesh of the context; without a mesh, the result is `function` itself.  There
    are no gradients.

    Args:
      function: computes sums over the rows of a batch, and arrays with rows as first axis.
      declared: `nn.parameters.declarations` of the parameters.
      sequences: arrays of the batch that are sharded along time; with NO_SEQUENCES all devices
        along "sequence" compute whole rows.

    Returns:
      A function of all rows, which returns the sums of all devices and the arrays of all rows.
    """

    def on_all_devices(parameters: Any, batch: Any) -> tuple[Any, Any]:
        spread = _spread((*RULES["rows"], *((SEQUENCE,) if sequences.names else ())))
        if not spread:
            return function(parameters, batch)
        axes = specs(jax.sharding.get_abstract_mesh(), parameters, declared)

        def on_one_device(parameters: Any, batch: Any) -> tuple[Any, Any]:
            sums, rows = function(_marked(parameters, axes), batch)
            return lax.psum(sums, spread), rows

        inputs = (axes, {name: batch_spec(name, sequences) for name in batch})
        outputs = (PartitionSpec(), PartitionSpec(RULES["rows"]))
        return _shard_map(on_one_device, spread, inputs, outputs)(parameters, batch)

    return on_all_devices
