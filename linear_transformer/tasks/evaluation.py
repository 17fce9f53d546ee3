"""Where an evaluation runs: on the mesh of the context, each device with a part of the rows.

Without `jax.set_mesh`, and on a mesh of one device, that is the default device with all rows.
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
    """The mesh that rows are spread over; None where one device has all of them."""
    found = jax.sharding.get_mesh()
    return found if found.size > 1 else None


def reader(batch_size: int) -> dict[str, int]:
    """What this process reads of each batch, as arguments of the functions that read a split.

    Args:
      batch_size: rows of a batch of all devices, which is made a multiple of them.
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
    """Devices that have rows of their own."""
    found = mesh()
    return 1 if found is None else found.shape["data"] * found.shape["fsdp"]


def put(batch: Batch, sequences: Sequences = NO_SEQUENCES) -> Batch | dict[str, jax.Array]:
    """The rows that this process has read, on its devices."""
    found = mesh()
    return batch if found is None else placement.put_batch(found, batch, sequences)


def init_rows(init: Callable[[int], Any], rows: int) -> Any:
    """`init(rows)`, arrays with the rows in front, on the devices that have the rows."""
    found = mesh()
    if found is None:
        return init(rows)
    make = functools.partial(init, rows)
    return jax.jit(make, out_shardings=placement.rows_of(found))()


def of_all_processes(sums: np.ndarray) -> np.ndarray:
    """The sum of what the processes have each computed of the rows that they have read."""
    found = mesh()
    if found is None:
        return sums
    part, _ = placement.readers(found)  # processes may read the same rows
    parts = dict(distributed.gather([part, sums.tolist()]))
    return np.sum([np.array(parts[part]) for part in sorted(parts)], axis=0)
