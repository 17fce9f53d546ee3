"""Accelerators: peak FLOPs, memory and bandwidth, and the topologies of TPU slices.

Figures are for one device as JAX counts devices, in bf16 without sparsity.  Sources: the pages of
the TPU versions at docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), and NVIDIA's data
sheets of A100 (SXM, 80 GB), H100 (SXM) and H200.  Nothing here starts JAX.
"""

import dataclasses
import glob
import importlib.metadata
import importlib.util
import os
import re
from typing import Any

from linear_transformer.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Peak figures of one device.

    Attributes:
      flops: FLOPs per second, multiply-adds counted as two.
      memory: bytes of HBM.
      bandwidth: bytes per second between HBM and the chip.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float


_V5E = Accelerator("TPU v5e", 197e12, 16 * GIB, 819e9)
_V6E = Accelerator("TPU v6e", 918e12, 32 * GIB, 1600e9)
# The keys are beginnings of `jax.Device.device_kind`; longer keys come first.
_KINDS = {
    "TPU v4": Accelerator("TPU v4", 275e12, 32 * GIB, 1228e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": Accelerator("TPU v5p", 459e12, 95 * GIB, 2765e9),
    "TPU v6": _V6E,
    "TPU7x": Accelerator("TPU7x, half a chip", 2307e12 / 2, 96 * GIB, 7380e9 / 2),
    "NVIDIA A100-SXM4-80GB": Accelerator("A100", 312e12, 80 * GIB, 2039e9),
    "NVIDIA H100 80GB HBM3": Accelerator("H100", 989e12, 80 * GIB, 3350e9),
    "NVIDIA H200": Accelerator("H200", 989e12, 141 * 10**9, 4800e9),
}
# Versions and their topology options: JAX shows a chip of v4 as one device only with this option.
_TOPOLOGIES: dict[str, dict[str, Any]] = {
    "v4": {"chip_config_name": "megacore"},
    "v5e": {},
    "v5p": {},
    "v6e": {},
    "tpu7x": {},
}


def find(device_kind: str) -> Accelerator | None:
    """Returns the accelerator that JAX calls `device_kind`; None if it is not in the table."""
    return next((a for kind, a in _KINDS.items() if device_kind.startswith(kind)), None)


def prepare_environment() -> None:
    """Sets the variables that libtpu needs without a TPU; call it before importing JAX."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # else warnings; the topology decides
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip that needs exclusive access
    }


def leave_out_absent_tpu() -> None:
    """Makes JAX ignore libtpu on a machine without a TPU, where libtpu prints errors.

    Call it before JAX looks for devices. It does nothing if the user has chosen platforms, if
    anything points to a TPU, or if another accelerator or its plugin is present.
    """
    import jax

    chosen = jax.config.values["jax_platforms"] or "JAX_PLATFORMS" in os.environ
    if chosen or importlib.util.find_spec("libtpu") is None:
        return
    patterns = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
    prefixes = ("TPU_", "CLOUD_TPU_", "JAX_FORCE_TPU", "PJRT_NAMES")
    variables = {v for v in os.environ if v.startswith(prefixes)}
    variables -= {"TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"}  # importing JAX sets them
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if not (variables or plugins or any(glob.glob(pattern) for pattern in patterns)):
        jax.config.update("jax_platforms", "cpu")


def describe_devices(topology: str, num_slices: int = 1) -> list[Any]:
    """Describes the devices of TPU slices that need not exist, slice after slice.

    Args:
      topology: a version and the chips along each axis, "v5e:4x4" or "v5p:2x2x1".
      num_slices: number of slices, connected by a data-centre network.

    Raises:
      ConfigError: there is no such topology, or libtpu is missing.
    """
    version, _, shape = topology.partition(":")
    if version not in _TOPOLOGIES or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise ConfigError(
            f"--topology={topology}: write VERSION:CHIPSxCHIPS, such as v5e:4x4 or v5p:2x2x1; "
            f"versions are {', '.join(_TOPOLOGIES)}"
        )
    if num_slices < 1:
        raise ConfigError(f"--num_slices={num_slices}: must be 1 or more")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('--compile_only: libtpu is missing; pip install "jax[tpu]"')
    from jax.experimental import topologies

    options = dict(_TOPOLOGIES[version])
    chips = [int(n) for n in shape.split("x")]
    if chips[0] % 2 or chips[1] % 2:  # hosts have 2 x 2 chips, or 1
        options["chips_per_host_bounds"] = (1, 1, 1)
    elif version == "v4":
        options["chips_per_host_bounds"] = (2, 2, 1)
    if version == "v4":
        options["wrap"] = (False,) * 3
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # the plugin may raise any exception
        reason = " ".join(str(error).split())
        raise ConfigError(f"--topology={topology}: {reason[:300]}") from error
    return sorted(described.devices, key=lambda device: getattr(device, "slice_index", 0))
