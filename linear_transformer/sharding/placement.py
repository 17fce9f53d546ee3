"""Placement: which device of a mesh holds which part of an array."""

import functools
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from linear_transformer.data.stream import NO_SEQUENCES, Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.nn.logical_axes import RULES
from linear_transformer.nn.stack import BLOCKS
from linear_transformer.sharding.mesh import FSDP, SEQUENCE

_SMALLEST = 2**12  # numbers of an array that are worth splitting

# What the last axes of a parameter are, by the end of its name; others have no names.
LOGICAL_AXES = (
    (r"embedding/embedding$", ("vocabulary", "embed")),
    (r"\bhead/kernel$", ("embed", "vocabulary")),
    (r"feed_forward/(up|gate)/kernel$", ("embed", "feed_forward")),
    (r"feed_forward/(up|gate)/bias$", ("feed_forward",)),
    (r"feed_forward/down/kernel$", ("feed_forward", "embed")),
    (r"\b(query|key|value|gate|receptance|forget|decay)/kernel$", ("embed", "heads")),
    (r"\b(gate|forget|decay|rate|dt)/up/kernel$", (None, "heads")),
    (r"\bdt/kernel$", (None, "heads")),
    (r"\bselection/kernel$", ("heads", None)),
    (r"\b(query|key|value|gate|receptance|forget|decay|dt)(/up)?/bias$", ("heads",)),
    (r"\boutput/kernel$", ("heads", "embed")),
)


def specs(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """How each array is split over "fsdp" and "tensor".

    As RULES say of its axes, and over "fsdp" along the longest one that can be where they say
    nothing; the first axis of what is in blocks may be that of layers, and stays.  Over "fsdp"
    small arrays stay whole.  Optimizers keep arrays under the names of the parameters.
    """

    def spec(path: Any, x: Any) -> PartitionSpec:
        large = x.size >= _SMALLEST
        split: list[str | None] = [None] * len(x.shape)
        for place, name in _logical_axes(path, len(x.shape)):
            axis = RULES[name]
            fits = x.shape[place] % mesh.shape[axis] == 0
            if mesh.shape[axis] > 1 and fits and (large or axis == "tensor"):
                split[place] = axis
        parts = mesh.shape[FSDP]
        if large and parts > 1 and FSDP not in split:
            first = 1 if in_blocks(path) else 0
            free = [
                i
                for i, n in enumerate(x.shape)
                if i >= first and split[i] is None and n % parts == 0
            ]
            if free:
                split[max(free, key=lambda i: x.shape[i])] = FSDP
        return PartitionSpec(*split)

    return jax.tree_util.tree_map_with_path(spec, tree)


def _logical_axes(path: Any, dimensions: int) -> list[tuple[int, str]]:
    """(place, logical name) of the axes that have one; layers that are scanned have one more."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for pattern, axes in LOGICAL_AXES:
        if re.search(pattern, name) and dimensions >= len(axes):
            places = range(dimensions - len(axes), dimensions)
            return [(i, axis) for i, axis in zip(places, axes, strict=True) if axis]
    return []


def in_blocks(path: Any) -> bool:
    return BLOCKS in jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def shardings(mesh: Mesh, tree: Any) -> Any:
    """`specs` with the mesh, as `jax.jit` and checkpoints take them."""
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs(mesh, tree))


def readers(mesh: Mesh) -> tuple[int, int]:
    """(number of this process's part of the rows, number of parts), for who reads what.

    Processes that share rows along "sequence" or "tensor" read the same ones.
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
    """The rows that this process has read, as its part of the batch of all processes.

    Args:
      batch: arrays with the rows in front.
      sequences: those that are padded where "sequence" does not divide their time.
    """
    if mesh.shape[SEQUENCE] > 1 and sequences.names:
        batch = _padded(batch, mesh.shape[SEQUENCE], sequences)
    part, parts = readers(mesh)

    def put(name: str, x: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, batch_spec(name, sequences))
        first = part * len(x)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            rows = index[0].indices(parts * len(x))
            return x[(slice(rows[0] - first, rows[1] - first), *index[1:])]

        return jax.make_array_from_callback((parts * len(x), *x.shape[1:]), sharding, piece)

    return {name: put(name, np.asarray(x)) for name, x in batch.items()}


def rows_of(mesh: Mesh) -> NamedSharding:
    """Rows, the first axis of an array, over the devices that have rows of their own."""
    return NamedSharding(mesh, PartitionSpec(RULES["rows"]))


def abstract_batch(
    mesh: Mesh, batch: Batch, sequences: Sequences = NO_SEQUENCES
) -> dict[str, jax.ShapeDtypeStruct]:
    """What `put_batch` gives of the rows of all processes, without the rows."""
    if mesh.shape[SEQUENCE] > 1:
        batch = _padded(batch, mesh.shape[SEQUENCE], sequences)
    specs = {name: NamedSharding(mesh, batch_spec(name, sequences)) for name in batch}
    return abstract(dict(batch), specs)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and types with shardings, for a program that is compiled without data."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def batch_spec(name: str, sequences: Sequences) -> PartitionSpec:
    rows = RULES["rows"]
    if name not in sequences.names:
        return PartitionSpec(rows)
    return PartitionSpec(rows, *[None] * (sequences.axis - 1), RULES["time"])


def _padded(batch: Batch, shards: int, sequences: Sequences) -> Batch:
    """Tokens of weight 0 in a segment of their own, behind the row."""
    present = [name for name in sequences.names if name in batch]
    time = batch[present[0]].shape[sequences.axis]
    padding = -(time + sequences.in_front) % shards + sequences.in_front
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
    """The rows, the first axis of an array, that this process has read."""
    parts = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
