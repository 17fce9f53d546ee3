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
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh

from linear_transformer.config import configuration, schema
from linear_transformer.config.schema import NOT_NEGATIVE, Range
from linear_transformer.errors import ConfigError
from linear_transformer.nn.split import AXIS as FSDP
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import Device

SEQUENCE = sequence_parallel.AXIS
AXES = ("data", FSDP, SEQUENCE, "tensor")  # neighbours on the last axes exchange most


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

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "MeshConfig":
        """The MeshConfig of an experiment.

        Raises:
          ConfigError: a mistake in config.mesh, or heads that "tensor" does not divide.
        """
        axes = config.get("mesh", ml_collections.ConfigDict())  # older configs have none
        made = configuration.build(cls, axes, "mesh")
        heads = config.model.get("num_heads", made.tensor)
        if heads % made.tensor:
            raise ConfigError(
                f"config.model.num_heads ({heads}) is not a multiple of config.mesh.tensor "
                f"({made.tensor})"
            )
        return made


def make_mesh(config: MeshConfig, rows: int, devices: Sequence[Device] | None = None) -> Mesh:
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
