"""Placement of an evaluation on the mesh of the context, where each device has a part of the rows.

Without `jax.set_mesh`, and on a mesh of one device, the default device has all rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from linear_transformer.data.stream import NO_SEQUENCES, Batch, Sequences
from linear_transformer.runtime import distributed
from linear_transformer.sharding import placement


def mesh() -> Mesh | None:
    """Returns the mesh that shards the rows; None if one device has all rows."""
    found = jax.sharding.get_mesh()
    return found if found.size > 1 else None


def reader(batch_size: int) -> dict[str, int]:
    """Returns the part of each batch that this process reads, as arguments of data pipelines.

    Args:
      batch_size: rows of a batch over all devices, rounded up to a multiple of the devices.
    """
    found = mesh()
    if found is None:
        return {"batch_size": batch_size, "process_index": 0, "process_count": 1}
    part, parts = placement.readers(found)
    own = row_devices() // parts
    return {
        "batch_size": -(-batch_size // (own * parts)) * own,
        "process_index": part,
        "process_count": parts,
    }


def row_devices() -> int:
    """Number of devices with their own rows."""
    found = mesh()
    return 1 if found is None else found.shape["data"] * found.shape["fsdp"]


def put(batch: Batch, sequences: Sequences = NO_SEQUENCES) -> Batch | dict[str, jax.Array]:
    """Places the rows that this process has read on its devices."""
    found = mesh()
    return batch if found is None else placement.put_batch(found, batch, sequences)


def init_rows(init: Callable[[int], Any], rows: int) -> Any:
    """Computes `init(rows)`, arrays with rows as first axis, on the devices of the rows."""
    found = mesh()
    if found is None:
        return init(rows)
    make = functools.partial(init, rows)
    return jax.jit(make, out_shardings=placement.rows_of(found))()


def of_all_processes(sums: np.ndarray) -> np.ndarray:
    """Returns the total of the sums that processes have computed over the rows that they read."""
    found = mesh()
    if found is None:
        return sums
    part, _ = placement.readers(found)  # processes may read the same rows
    parts = dict(distributed.gather([part, sums.tolist()]))
    return np.sum([np.array(parts[part]) for part in sorted(parts)], axis=0)
