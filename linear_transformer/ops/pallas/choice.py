"""Choice between a kernel and the chunk form of XLA, for `form="auto"`."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jaxtyping import Array

MIN_TOKENS = 1024
_TARGET: contextvars.ContextVar[tuple[str, int] | None] = contextvars.ContextVar(
    "target", default=None
)


@contextlib.contextmanager
def compiling_for(platform: str, devices: int) -> Iterator[None]:
    """Context in which code is traced for devices that the process does not have."""
    token = _TARGET.set((platform, devices))
    try:
        yield
    finally:
        _TARGET.reset(token)


def target() -> tuple[str, int]:
    """Platform and number of the devices that code is traced for."""
    return _TARGET.get() or (jax.default_backend(), jax.device_count())


def prefers_kernel(q_BTHK: Array, v_BTHV: Array) -> bool:
    """Returns whether to prefer a kernel: on TPUs, for long sequences of heads that fill the lanes.

    No kernel here has been timed on a TPU.  Additive attention and scalar decays are expected to be
    faster: they are bound by memory, the kernel moves its inputs and outputs through HBM once, and
    the loop of XLA moves features, weights and states too (docs/pallas.md has the bytes).  Vector
    decays and the delta rule do more arithmetic in the kernel than in the loop, so they are left
    out until they are timed.  XLA cannot partition a kernel over several devices; inside
    `jax.shard_map` over all axes of the mesh, as in a training step that "tensor" does not split,
    there is nothing to partition.
    """
    mesh = jax.sharding.get_abstract_mesh()
    by_hand = not mesh.empty and set(mesh.manual_axes) == set(mesh.axis_names)
    platform, devices = target()
    return (
        platform == "tpu"
        and (devices == 1 or by_hand)
        and q_BTHK.shape[1] >= MIN_TOKENS
        and q_BTHK.shape[-1] % 128 == 0
        and v_BTHV.shape[-1] % 128 == 0
    )
