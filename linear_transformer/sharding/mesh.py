"""Device mesh for training on several devices.

A mesh has four axes.

- "data": every device has all parameters and a part of the batch.
- "fsdp": a part of the batch, and a part of each parameter and of the optimizer's state
  (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054).  The parameters of a layer are gathered for its
  forward pass, and again for its backward pass; its gradients are scattered at once.
- "sequence": the same rows, but a part of the consecutive tokens of each row
  (`ops.sequence_parallel`).
- "tensor": the same tokens, but a part of the heads, of the feed-forward features and of the
  vocabulary (Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053).

Over the first three axes, each device runs the program of a single device on its own tokens.  Over
"tensor", the compiler shards this program by the logical axes of parameters and activations
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
AXES = ("data", FSDP, SEQUENCE, "tensor")  # neighbours along the last axes exchange most


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each axis.

    Attributes:
      data: devices with their own rows and all parameters; 0 is as many as are available.
      fsdp: devices with their own rows and a shard of the parameters; 1 keeps parameters whole.
      tensor: devices that shard each layer, a divisor of the heads; 1 keeps layers whole.
      sequence: devices that shard each row, padded if necessary; 1 keeps rows whole.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    CHOICES: ClassVar[Mapping[str, Any]] = {}
    RANGES: ClassVar[Mapping[str, Range]] = {
        "data": NOT_NEGATIVE,
        **dict.fromkeys(("fsdp", "tensor", "sequence"), Range(least=1)),
    }

    def __post_init__(self):
        schema.check(self, "mesh")

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "MeshConfig":
        """Makes the MeshConfig of an experiment.

        Raises:
          ConfigError: config.mesh is invalid, or "tensor" does not divide the heads.
        """
        axes = config.get("mesh", ml_collections.ConfigDict())  # not in older configs
        made = configuration.build(cls, axes, "mesh")
        heads = config.model.get("num_heads", made.tensor)
        if heads % made.tensor:
            raise ConfigError(
                f"config.model.num_heads ({heads}) is not a multiple of config.mesh.tensor "
                f"({made.tensor})"
            )
        return made


def make_mesh(config: MeshConfig, rows: int, devices: Sequence[Device] | None = None) -> Mesh:
    """Makes the mesh of the devices of all processes, or of the first ones if `data` needs fewer.

    Args:
      config: number of devices along each axis.
      rows: rows of a batch, or of one accumulated part of a batch.
      devices: devices to use; None is `jax.devices()`.

    Raises:
      ConfigError: there are too few devices, or the rows cannot be divided between them.
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
