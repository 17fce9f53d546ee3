"""Placement of arrays: the shard of an array on each device of a mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from linear_transformer.data.stream import NO_SEQUENCES, Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.nn.logical_axes import RULES
from linear_transformer.sharding.mesh import FSDP, SEQUENCE

_SMALLEST = 2**12  # least entries of an array that is sharded over "fsdp"


def specs(mesh: Mesh | AbstractMesh, tree: Any, declared: Any) -> Any:
    """Returns the PartitionSpec of each array of a tree, over "fsdp" and "tensor".

    The logical axes that a parameter declares are sharded as RULES say.  A large array without such
    an axis over "fsdp" is sharded along its longest divisible axis.  The first axis of a scanned
    stack, its layers, stays whole, and small arrays stay whole over "fsdp".

    Args:
      mesh: mesh with the axes of `sharding.mesh`.
      tree: arrays or their shapes: parameters, an optimizer state, or both.
      declared: `nn.parameters.declarations` of the parameters.
    """
    by_path = dict(jax.tree.leaves_with_path(declared))

    def axes_of(path: tuple[Any, ...], dimensions: int) -> tuple[str | None, ...]:
        """Axes of the declaration; an optimizer's moments end in the path of their parameter."""
        for start in range(len(path)):
            found = by_path.get(path[start:])
            if found is not None and len(found.axes) <= dimensions:
                return found.axes
        return (None,) * dimensions

    def spec(path: tuple[Any, ...], x: Any) -> PartitionSpec:
        axes = axes_of(path, len(x.shape))
        layers = len(x.shape) - len(axes)
        large = x.size >= _SMALLEST
        split: list[Any] = [None] * len(x.shape)
        for place, name in enumerate(axes, layers):
            axis = RULES[name] if name else None
            if axis is None or mesh.shape[axis] == 1 or x.shape[place] % mesh.shape[axis]:
                continue
            if large or axis == "tensor":
                split[place] = axis
        parts = mesh.shape[FSDP]
        if large and parts > 1 and FSDP not in split:
            places = range(layers, len(x.shape))
            free = [i for i in places if split[i] is None and x.shape[i] % parts == 0]
            if free:
                split[max(free, key=lambda i: x.shape[i])] = FSDP
        return PartitionSpec(*split)

    return jax.tree.map_with_path(spec, tree)


def readers(mesh: Mesh) -> tuple[int, int]:
    """Returns the index of the part of the rows that this process reads, and the number of parts.

    Processes that share rows along "sequence" or "tensor" read the same rows.
    """
    devices = mesh.devices.reshape(mesh.shape["data"] * mesh.shape[FSDP], -1)
    here = [
        i
        for i, row in enumerate(devices)
        if any(d.process_index == jax.process_index() for d in row)
    ]
    parts = len(devices) // len(here)
    if here != list(range(here[0], here[0] + len(here))) or len(devices) % len(here):
        raise ConfigError(
            f"config.mesh: a process has the rows {here} of {len(devices)}, no equal part of them; "
            "make data x fsdp a multiple of the processes, or the processes one of it"
        )
    return here[0] // len(here), parts


def put_batch(
    mesh: Mesh, batch: Batch, sequences: Sequences = NO_SEQUENCES
) -> dict[str, jax.Array]:
    """Places the rows that this process has read as its part of the batch of all processes.

    Args:
      mesh: mesh of all processes.
      batch: arrays with rows as first axis.
      sequences: arrays that are padded if "sequence" does not divide their time.
    """
    if mesh.shape[SEQUENCE] > 1 and sequences.names:
        batch = _padded(batch, mesh.shape[SEQUENCE], sequences)
    part, parts = readers(mesh)

    def put(name: str, x: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, batch_spec(name, sequences))
        first = part * len(x)

        def piece(index: Any) -> np.ndarray:  # a slice for each axis
            rows = index[0].indices(parts * len(x))
            return x[(slice(rows[0] - first, rows[1] - first), *index[1:])]

        return jax.make_array_from_callback((parts * len(x), *x.shape[1:]), sharding, piece)

    return {name: put(name, np.asarray(x)) for name, x in batch.items()}


def rows_of(mesh: Mesh) -> NamedSharding:
    """Sharding of rows, the first axis of an array, over the devices with their own rows."""
    return NamedSharding(mesh, PartitionSpec(RULES["rows"]))


def abstract_batch(
    mesh: Mesh, batch: Batch, sequences: Sequences = NO_SEQUENCES
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of the result of `put_batch`, without data."""
    if mesh.shape[SEQUENCE] > 1:
        batch = _padded(batch, mesh.shape[SEQUENCE], sequences)
    specs = {name: NamedSharding(mesh, batch_spec(name, sequences)) for name in batch}
    return abstract(dict(batch), specs)


def abstract(tree: Any, shardings: Any) -> Any:
    """Returns shapes, dtypes and shardings, to compile a program without data."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def batch_spec(name: str, sequences: Sequences) -> PartitionSpec:
    rows = RULES["rows"]
    if name not in sequences.names:
        return PartitionSpec(rows)
    return PartitionSpec(rows, *[None] * (sequences.axis - 1), RULES["time"])


def _padded(batch: Batch, shards: int, sequences: Sequences) -> Batch:
    """Pads rows with tokens of weight 0, in a segment of their own behind the row."""
    present = [name for name in sequences.names if name in batch]
    time = batch[present[0]].shape[sequences.axis]
    padding = -(time + sequences.num_prefix_tokens) % shards + sequences.num_prefix_tokens
    if padding == 0:
        return batch
    batch = dict(batch)
    if "segment_ids" in sequences.names:
        rows = len(batch[present[0]])
        ids = batch.get("segment_ids", np.zeros((rows, time), np.int32))
        own = ids.max(axis=1, keepdims=True) + 1
        batch["segment_ids"] = np.concatenate([ids, np.repeat(own, padding, axis=1)], axis=1)
    for name in present:
        if name != "segment_ids":
            behind = [(0, 0)] * batch[name].ndim
            behind[sequences.axis] = (0, padding)
            batch[name] = np.pad(batch[name], behind)
    return batch


def own_rows(rows: jax.Array) -> np.ndarray:
    """Returns the rows, the first axis of an array, that this process has read."""
    parts = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
