"""Training on several devices: which of them holds what.

A mesh has four axes.

- "data": every device has all parameters and a part of the batch.
- "fsdp": a part of the batch, and a part of each parameter and of the optimizer's state
  (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054).  A layer's parameters are gathered where it is
  computed, and again where its gradients are, which are scattered at once.
- "sequence": the same rows, and of each a part of its consecutive tokens
  (`ops.sequence_parallel`).
- "tensor": the same tokens, and a part of the heads, of the feed-forward features and of the
  vocabulary (Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053).

Over the first three each device runs the very program of a single device on its tokens.  Over
"tensor" the compiler splits that program as the named axes of parameters and activations say
(`nn.logical_axes`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import ml_collections
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from linear_transformer.config import configuration, schema
from linear_transformer.config.schema import NOT_NEGATIVE, Range
from linear_transformer.data.stream import NO_SEQUENCES, Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.nn.logical_axes import RULES
from linear_transformer.nn.split import AXIS as FSDP, Split, gathered, scatter
from linear_transformer.nn.stack import BLOCKS
from linear_transformer.ops import sequence_parallel

SEQUENCE = sequence_parallel.AXIS
AXES = ("data", FSDP, SEQUENCE, "tensor")  # neighbours on the last axes exchange most
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis.

    Attributes:
      data: devices that have rows of their own; 0 takes all that there are.
      fsdp: devices that share parameters and have rows of their own; 1 keeps parameters whole.
      tensor: devices that share a layer, a divisor of the heads; 1 keeps layers whole.
      sequence: devices that share a row, which is padded where it must be; 1 keeps rows whole.
      exchange: of the states between the shards of a sequence, see `ops.sequence_parallel`.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    exchange: str = "scan"

    CHOICES: ClassVar[Mapping[str, Any]] = {"exchange": sequence_parallel.EXCHANGES}
    RANGES: ClassVar[Mapping[str, Range]] = {
        "data": NOT_NEGATIVE,
        **dict.fromkeys(("fsdp", "tensor", "sequence"), Range(least=1)),
    }

    def __post_init__(self):
        schema.check(self, "mesh")


def mesh_config(config: ml_collections.ConfigDict) -> MeshConfig:
    """That of an experiment.

    Raises:
      ConfigError: a mistake in config.mesh, or heads that "tensor" does not divide.
    """
    axes = config.get("mesh", ml_collections.ConfigDict())  # older configs have none
    made = configuration.build(MeshConfig, axes, "mesh")
    heads = config.model.get("num_heads", made.tensor)
    if heads % made.tensor:
        raise ConfigError(
            f"config.model.num_heads ({heads}) is not a multiple of config.mesh.tensor "
            f"({made.tensor})"
        )
    return made


def make_mesh(config: MeshConfig, rows: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all processes' devices, or of the first ones where `data` asks for fewer.

    Args:
      config: how many devices along which axis.
      rows: of a batch, or of a part of it that is computed at a time.
      devices: instead of those that JAX has.

    Raises:
      ConfigError: there are too few devices, or the batch cannot be split between them.
    """
    devices = jax.devices() if devices is None else devices
    row = config.sequence * config.tensor  # devices that share a row
    most = max(len(devices) // (config.fsdp * row), 1)
    data = config.data or most
    shape = (data, config.fsdp, config.sequence, config.tensor)
    size = data * config.fsdp * row
    if size > len(devices):
        asked = " x ".join(f"{n} {axis}" for n, axis in zip(shape, AXES, strict=True) if n > 1)
        raise ConfigError(
            f"config.mesh asks for {size} devices ({asked}); there are {len(devices)}"
        )
    fitting = [n for n in range(1, most + 1) if rows % (n * config.fsdp) == 0]
    remedy = ""
    if fitting and jax.process_count() == 1:
        used = fitting[-1] * config.fsdp * row
        remedy = f", or set config.mesh.data={fitting[-1]} to use {used} of {len(devices)} devices"
    if size < len(devices) and (jax.process_count() > 1 or not config.data):
        raise ConfigError(
            f"config.mesh has {size} of {len(devices)} devices (fsdp x sequence x tensor is "
            f"{config.fsdp * row}); make it use all{remedy}"
        )
    if rows % (data * config.fsdp):
        raise ConfigError(
            f"config.data.batch_size / config.accumulate_steps ({rows} rows) is not a multiple of "
            f"the {data * config.fsdp} devices along data and fsdp of config.mesh; make it one"
            + remedy
        )
    return Mesh(np.array(devices[:size]).reshape(shape), AXES, (AxisType.Auto,) * len(AXES))


def require_sequences(config: MeshConfig, sequences: Sequences) -> None:
    """Raises a ConfigError where devices are to share a row that is no sequence."""
    if config.sequence > 1 and not sequences.names:
        raise ConfigError(
            f"config.mesh.sequence is {config.sequence}; an example of this task is no sequence"
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
            first = 1 if _in_blocks(path) else 0
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


def _in_blocks(path: Any) -> bool:
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
        sharding = NamedSharding(mesh, _batch_spec(name, sequences))
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
    specs = {name: NamedSharding(mesh, _batch_spec(name, sequences)) for name in batch}
    return abstract(dict(batch), specs)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and types with shardings, for a program that is compiled without data."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _batch_spec(name: str, sequences: Sequences) -> PartitionSpec:
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


def sum_over_devices(
    sums: Callable[..., Any], sequences: Sequences = NO_SEQUENCES, exchange: str = "scan"
) -> Callable[..., Any]:
    """`sums(parameters, rows, key) -> (gradients, metrics)` of the tokens of all devices.

    They are those of the mesh of the context; without one it is `sums`.  Gradients are sums over
    tokens, split as the parameters are.  Each part of the rows has a key of its own, so that
    dropout depends on their number.

    Args:
      sequences: as of `put_batch`.
      exchange: as of `MeshConfig`.
    """

    def total(x: Any, axes: Sequence[str]) -> Any:
        return lax.psum(x, axes) if axes else x

    def of_all(parameters: Any, batch: Any, key: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        rows = RULES["rows"]
        spread = tuple(axis for axis in (*rows, SEQUENCE) if mesh.shape.get(axis, 1) > 1)
        if not spread:  # the compiler splits what there is over "tensor"
            return sums(parameters, batch, key)
        # It does not know sums over axes of one device among those that it has to split itself.
        manual = spread if mesh.shape["tensor"] > 1 else AXES
        row_axes = tuple(axis for axis in spread if axis in rows)
        axes = specs(mesh, parameters)
        split = jax.tree.map(functools.partial(_restricted, axes=manual), axes)

        def scattered(x: jax.Array | Split, spec: PartitionSpec) -> jax.Array:
            if FSDP not in spec:
                return total(x, spread)
            x = x.part if isinstance(x, Split) else scatter(x, tuple(spec))
            return total(x, [axis for axis in spread if axis != FSDP])

        def of_one(parameters: Any, batch: Any, key: jax.Array) -> Any:
            if row_axes:
                key = jax.random.fold_in(key, lax.axis_index(row_axes))
            with sequence_parallel.exchange(exchange):
                gradients, metrics = sums(_marked(parameters, axes), batch, key)
            gradients = jax.tree.map(
                scattered, gradients, axes, is_leaf=lambda x: isinstance(x, Split)
            )
            return gradients, total(metrics, spread)

        whole = PartitionSpec()
        batch_specs = {name: _restricted(_batch_spec(name, sequences), manual) for name in batch}
        run = jax.shard_map(
            of_one,
            in_specs=(split, batch_specs, whole),
            out_specs=(split, whole),
            axis_names=set(manual),
            check_vma=False,  # the sums are written out above
        )
        return run(parameters, batch, key)

    return of_all


def _restricted(spec: PartitionSpec, axes: Sequence[str]) -> PartitionSpec:
    """Of an array's split the part along these axes of the mesh."""

    def kept(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(axis for axis in part if axis in axes)
        return part if part in axes else None

    return PartitionSpec(*map(kept, spec))


def _marked(parameters: Any, axes: Any) -> Any:
    """A device's part of the parameters: blocks gather what is theirs; the rest is gathered here.

    Args:
      axes: the `specs` of the parameters.
    """

    def mark(path: Any, x: jax.Array, spec: PartitionSpec) -> jax.Array | Split:
        if FSDP not in spec:
            return x
        x = Split(x, tuple(spec))
        return x if _in_blocks(path) else gathered(x)

    return jax.tree_util.tree_map_with_path(mark, parameters, axes)


def over_devices(
    function: Callable[[Any, Any], tuple[Any, Any]], sequences: Sequences = NO_SEQUENCES
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """`function(parameters, batch) -> (sums, rows)` of the rows of all devices, without gradients.

    The devices are those of the mesh of the context; without a mesh the result is `function`.

    Args:
      function: computes sums over the rows of a batch, and arrays with the rows in front.
      sequences: the arrays of the batch that devices share along time; with NO_SEQUENCES the
        devices along "sequence" all compute whole rows.

    Returns:
      A function of all rows: the sums of all devices, and the arrays of all rows.
    """

    def of_all(parameters: Any, batch: Any) -> tuple[Any, Any]:
        mesh = jax.sharding.get_abstract_mesh()
        shared = (*RULES["rows"], *((SEQUENCE,) if sequences.names else ()))
        spread = tuple(axis for axis in shared if mesh.shape.get(axis, 1) > 1)
        if not spread:
            return function(parameters, batch)
        others = set(AXES) - set(spread)
        manual = spread if any(mesh.shape[axis] > 1 for axis in others) else AXES
        axes = specs(mesh, parameters)

        def of_one(parameters: Any, batch: Any) -> tuple[Any, Any]:
            sums, rows = function(_marked(parameters, axes), batch)
            return lax.psum(sums, spread), rows

        split = jax.tree.map(functools.partial(_restricted, axes=manual), axes)
        batch_specs = {name: _restricted(_batch_spec(name, sequences), manual) for name in batch}
        run = jax.shard_map(
            of_one,
            in_specs=(split, batch_specs),
            out_specs=(PartitionSpec(), _restricted(PartitionSpec(RULES["rows"]), manual)),
            axis_names=set(manual),
            check_vma=False,  # the sums are written out above
        )
        return run(parameters, batch)

    return of_all


def own_rows(rows: jax.Array) -> np.ndarray:
    """The rows, the first axis of an array, that this process has read."""
    parts = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
