"""Log-linear attention: a state for each power of two of the distance (Guo et al. 2025)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import split_heads
from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.kernel_attention import KernelAttention, KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks
from linear_transformer.ops.feature_maps import FEATURE_MAPS
from linear_transformer.ops.log_linear import FORMS, log_linear_attention
from linear_transformer.ops.normalizer import append_ones, divide
from linear_transformer.types import Activations, Keys, Outputs, Queries, SegmentIds, Values


class LogLinear(RecurrentMixer):
    """Recurrence whose output is a sum over levels of the distance, see `ops.log_linear`.

    The scale of level l is softplus(L_l (W x_t)_l) for each head, with L = 1 at first, as released.
    Rows with several segments, and prompts after a state, are computed token by token.  A subclass
    calls `_make_scales` in its constructor, and `_over_levels`.

    Attributes:
      max_length: longest segment in tokens, which sets the number of levels; `capacity` is equal.
        The caller must not exceed it.
    """

    forms = FORMS

    def _make_scales(self, max_length: int, rngs: nnx.Rngs) -> None:
        checks.counts(max_length=max_length)
        self.capacity = self.max_length = max_length
        self.levels = max_length.bit_length()
        scales = self.heads * (self.levels + 1)
        self.scale = self._linear(scales, rngs)
        self.scale_gain = nnx.Param(
            jnp.ones((self.heads, self.levels + 1)), **vector("heads", None)
        )

    def _init_sums(self, batch_size):
        shape = (batch_size, self.levels, self.heads, *self._state_shape)
        return jnp.zeros(shape, self._state_dtype), jnp.zeros(batch_size, jnp.int32)

    def _over_levels(
        self,
        x_BTD: Activations,
        q_BTHK: Queries,
        k_BTHK: Keys,
        v_BTHV: Values,
        log_decay_BTH: Float[Array, "B T H"] | None,
        sums: MixerState | None,
        segment_ids: SegmentIds | None,
    ) -> tuple[Outputs, MixerState]:
        """Returns the outputs, and the state of all levels."""
        scale_BTHM = split_heads(self.scale(x_BTD), self.heads).astype(self._state_dtype)
        return log_linear_attention(
            q_BTHK,
            k_BTHK,
            v_BTHV,
            jax.nn.softplus(scale_BTHM * self.scale_gain[...].astype(self._state_dtype)),
            log_decay_BTH=log_decay_BTH,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for the levels up to the context; see `Mixer.flops_per_token`."""
        rows, columns = self._state_shape
        seen = context.bit_length()  # buckets that a token reads and writes, of half the tokens
        return 2 * self.heads * rows * columns * (seen + 1)


@mechanism(
    "log_linear",
    meaning="linear attention with a state for each power of two of the distance",
    source="Guo et al. 2025, arXiv:2506.04761, section 3.2",
    options={"max_length": 1024},
    length_option="max_length",
    limits_length=True,
)
class LogLinearAttention(KernelAttention, LogLinear):
    """Linear attention without decay, in which each level of the distance has a scale.

        o_t = sum_s w_ts v_s / sum_s w_ts,   w_ts = scale_{t, level(t, s)} phi(q_t).phi(k_s)

    with phi = elu + 1.  With equal scales this is `linear`, whose feature map and denominator the
    paper leaves out.  Tokens of one level are in no order, so the mixer needs positions.

    Attributes:
      max_length: longest segment in tokens, see `LogLinear`.
    """

    directions = ("causal",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        max_length: int = 1024,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        super().__init__(width, heads, rngs=rngs, **options)
        self._make_scales(max_length, rngs)

    def _attend(self, x, q, k, v, sums, segment_ids, positions):
        del positions
        phi = FEATURE_MAPS["elu_plus_one"]
        values = append_ones(v).astype(self._state_dtype)  # a quotient of rounded sums loses digits
        o, sums = self._over_levels(x, phi(q), phi(k), values, None, sums, segment_ids)
        return divide(o, 1e-6).astype(v.dtype), sums
