"""Parallel mixers in one block."""

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.base import Mixer


class Parallel(Mixer):
    """Sum of the outputs of several mixers for the same input; the state is a dict by mixer name.

    A local and a global mixer together are the parallel form of TransNormer (Qin et al. 2022, table
    12), at twice the cost of one mixer.
    """

    def __init__(self, branches: dict[str, Mixer]):
        if not branches:
            raise ValueError("branches is empty; name a mixer")
        if any(mixer.value_residual for mixer in branches.values()):
            raise ValueError("value_residual needs a mixer with a layer of its own")
        self.names = tuple(branches)
        self.branches = nnx.List(branches.values())

    @property
    def capacity(self) -> int | None:
        """Most tokens that a state can process; None is no limit."""
        limits = [mixer.capacity for mixer in self.branches]
        return min((limit for limit in limits if limit is not None), default=None)

    def _init_state(self, batch_size):
        states = [mixer.init_state(batch_size) for mixer in self.branches]
        return dict(zip(self.names, states, strict=True))

    def _forward(self, x_BTD, state, segment_ids, positions):
        y_BTD = jnp.zeros_like(x_BTD)
        new_state = {}
        for name, mixer in zip(self.names, self.branches, strict=True):
            before = None if state is None else state[name]
            o_BTD, new_state[name] = mixer(
                x_BTD, before, segment_ids=segment_ids, positions=positions
            )
            y_BTD = y_BTD + o_BTD
        return y_BTD, None if state is None else new_state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token in all branches; see `Mixer.flops_per_token`."""
        return sum(mixer.flops_per_token(context) for mixer in self.branches)
