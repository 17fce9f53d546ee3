"""Training on several devices: which of them holds what.

A mesh has two axes.  Over "data" every device has all parameters and a part of the batch; over
"fsdp" a part of the batch and a part of each parameter and of the optimizer's state (Rajbhandari et
al. 2020, ZeRO, arXiv:1910.02054): a step gathers the parameters, and scatters the gradients.
Each device runs the very program of a single device on its rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from linear_transformer.errors import ConfigError

AXES = ("data", "fsdp")
_SMALLEST = 2**12  # numbers of an array that are worth splitting


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis.

    Attributes:
      data: 0 takes as many devices as there are and as divide the batch.
      fsdp: 1 keeps parameters whole.
    """

    data: int = 0
    fsdp: int = 1

    def __post_init__(self):
        for key, least in (("data", 0), ("fsdp", 1)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"config.mesh.{key} is {getattr(self, key)}; it must be {least} or more"
                )


def make_mesh(config: MeshConfig, rows: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all processes' devices, or of the first ones where fewer are asked for.

    Args:
      config: how many devices along which axis.
      rows: of a batch, or of a part of it that is computed at a time.
      devices: instead of those that JAX has.

    Raises:
      ConfigError: there are too few devices, or the batch cannot be split between them.
    """
    devices = jax.devices() if devices is None else devices
    most = max(len(devices) // config.fsdp, 1)
    fitting = (n for n in range(most, 1, -1) if rows % (n * config.fsdp) == 0)
    data = config.data or next(fitting, 1)
    size = data * config.fsdp
    if size > len(devices):
        raise ConfigError(
            f"config.mesh asks for {data} x {config.fsdp} devices; there are {len(devices)}"
        )
    if size < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"config.mesh has {size} of {len(devices)} devices; several processes need all"
        )
    if rows % size:
        raise ConfigError(
            f"config.data.batch_size / config.accumulate_steps ({rows} rows) is not a multiple of "
            f"the {size} devices of config.mesh"
        )
    return Mesh(np.array(devices[:size]).reshape(data, config.fsdp), AXES)


def specs(mesh: Mesh, tree: Any) -> Any:
    """How each array is split over "fsdp": along its longest axis that can be, if it is large."""
    parts = mesh.shape["fsdp"]

    def spec(x: Any) -> PartitionSpec:
        candidates = [size for size in x.shape if size % parts == 0]
        if parts == 1 or x.size < _SMALLEST or not candidates:
            return PartitionSpec()
        axis = x.shape.index(max(candidates))
        return PartitionSpec(*[None] * axis, "fsdp")

    return jax.tree.map(spec, tree)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """`specs` with the mesh, as `jax.jit` and checkpoints take them."""
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs(mesh, tree))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """The rows that this process has read, as its part of the batch of all processes."""
    rows = rows_of(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)


def rows_of(mesh: Mesh) -> NamedSharding:
    """Rows, the first axis of a batch, over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and types with shardings, for a program that is compiled without data."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def sum_over_devices(mesh: Mesh, sums: Callable[..., Any]) -> Callable[..., Any]:
    """`sums(parameters, rows, key) -> (gradients, metrics)` of the rows of all devices.

    Gradients are sums over rows, split as the parameters are.  Each device has a key of its own, so
    that dropout depends on their number.
    """
    if mesh.size == 1:
        return sums

    def of_all(parameters: Any, batch: Any, key: jax.Array) -> Any:
        split = specs(mesh, parameters)

        def gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return x
            return lax.all_gather(x, "fsdp", axis=spec.index("fsdp"), tiled=True)

        def scatter(x: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return lax.psum(x, AXES)
            axis = spec.index("fsdp")
            x = lax.psum_scatter(x, "fsdp", scatter_dimension=axis, tiled=True)
            return lax.psum(x, "data")

        def of_one(parameters: Any, batch: Any, key: jax.Array) -> Any:
            key = jax.random.fold_in(key, lax.axis_index(AXES))
            gradients, metrics = sums(jax.tree.map(gather, parameters, split), batch, key)
            return jax.tree.map(scatter, gradients, split), lax.psum(metrics, AXES)

        whole, rows = PartitionSpec(), PartitionSpec(AXES)
        run = jax.shard_map(
            of_one,
            mesh=mesh,
            in_specs=(split, rows, whole),
            out_specs=(split, whole),
            check_vma=False,  # the sums are written out above
        )
        return run(parameters, batch, key)

    return of_all
