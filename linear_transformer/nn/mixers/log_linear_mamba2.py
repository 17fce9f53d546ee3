"""Log-linear Mamba-2: a state for each power of two of the distance (Guo et al. 2025)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import split_heads
from linear_transformer.nn.mixers.mamba2 import Mamba2, Mamba2Options
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks
from linear_transformer.ops.log_linear import FORMS, log_linear_attention


@mechanism(
    "log_linear_mamba2",
    meaning="Mamba-2 with a state for each power of two of the distance",
    source="Guo et al. 2025, arXiv:2506.04761, section 3.4",
    options={"max_length": 1024},
    encodes_order=True,
    feed_forward_ratio=0,
    layers=2,
    length_option="max_length",
    limits_length=True,
)
class LogLinearMamba2(Mamba2):
    """Mamba-2 whose output is a sum over levels of the distance, see `ops.log_linear`.

    The scale of level l is softplus(L_l (W x_t)_l) for each head, with L = 1 at first, as released.
    Rows with several segments, and prompts after a state, are computed token by token.

    Attributes:
      max_length: longest segment in tokens, which sets the number of levels; `capacity` is equal.
        The caller must not exceed it.
    """

    forms = FORMS

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        max_length: int = 1024,
        rngs: nnx.Rngs,
        **options: Unpack[Mamba2Options],
    ):
        checks.positive(max_length=max_length)
        super().__init__(width, heads, rngs=rngs, **options)
        self.capacity = self.max_length = max_length
        self.levels = max_length.bit_length()
        scales = heads * (self.levels + 1)
        self.scale = self._linear(scales, rngs)
        self.scale_gain = nnx.Param(jnp.ones((heads, self.levels + 1)), **vector("heads", None))

    def _init_sums(self, batch_size):
        shape = (batch_size, self.levels, self.heads, *self._state_shape)
        return jnp.zeros(shape, self._state_dtype), jnp.zeros(batch_size, jnp.int32)

    def _attend(self, x, q, k, v, log_decay, sums, segment_ids):
        scale_BTHM = split_heads(self.scale(x), self.heads).astype(self._state_dtype)
        return log_linear_attention(
            q,
            k,
            v,
            jax.nn.softplus(scale_BTHM * self.scale_gain[...].astype(self._state_dtype)),
            log_decay_BTH=log_decay,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for the levels up to the context; see `Mixer.flops_per_token`."""
        rows, columns = self._state_shape
        seen = context.bit_length()  # buckets that a token reads and writes, of half the tokens
        return 2 * self.heads * rows * columns * (seen + 1)
