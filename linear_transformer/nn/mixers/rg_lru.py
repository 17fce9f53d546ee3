"""RG-LRU, the real-gated linear recurrent unit of Griffin (De et al. 2024, arXiv:2402.19427)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import BlockDiagonal, merge_heads, split_heads
from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks
from linear_transformer.ops.selective_scan import FORMS, diagonal_scan
from linear_transformer.types import PRNGKey

EXPONENT = 8.0  # c
INITIAL_DECAYS = (0.9, 0.999)  # a^c at initialisation


def _decay_logits(key: PRNGKey, shape: tuple[int, ...]) -> jax.Array:
    """Returns Lambda with sigmoid(Lambda)^c uniform over INITIAL_DECAYS."""
    low, high = INITIAL_DECAYS
    log_a = jnp.log(jax.random.uniform(key, shape, minval=low, maxval=high)) / EXPONENT
    return log_a - jnp.log(-jnp.expm1(log_a))


@mechanism(
    "rg_lru",
    meaning="real-gated linear recurrent unit: diagonal states with decays of the token",
    source="De et al. 2024, arXiv:2402.19427, section 2.4",
    encodes_order=True,
)
class RGLRU(RecurrentMixer):
    """Recurrent block of Griffin: a GELU gate beside a short convolution and an RG-LRU.

        u = convolution(W_in x) + b_c          y_t = W_O (gelu(W_G x_t) * h_t)
        r_t = sigmoid(W_a u_t + b_a)           i_t = sigmoid(W_x u_t + b_x)
        a_t = sigmoid(Lambda)^(c r_t)          h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t * u_t)

    c is 8, and sigmoid(Lambda)^c is uniform in [0.9, 0.999] at initialisation.  W_a and W_x are
    block-diagonal, one block per head, as in the released code.  All tokens follow the equations;
    the released code leaves out the factor sqrt(1 - a_t^2) at the first token of a document.

    Attributes:
      state_width: numbers in the state, a multiple of the heads; None is the width of the model.
      convolution: tokens in the window of the short convolution.
      form, chunk_size: see `ops.selective_scan.diagonal_scan`.
    """

    forms = FORMS
    local: ShortConvolution

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        state_width: int | None = None,
        convolution: int = 4,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        state_width = width if state_width is None else state_width
        checks.counts(state_width=state_width)
        if state_width % heads:
            raise ValueError(
                f"state_width is {state_width}; it must be a multiple of {heads} heads"
            )
        head = state_width // heads
        super().__init__(width, heads, key_width=head, value_width=1, **options)
        self.state_width = state_width
        self.output = self._output_layer(rngs, state_width)
        self.value = self._linear(state_width, rngs)
        self.gate = self._linear(state_width, rngs)
        self.local = ShortConvolution(state_width, convolution, dtype=self.dtype, rngs=rngs)
        self.convolution_bias = nnx.Param(jnp.zeros((state_width,)), **vector("heads"))
        self.decay_gate = BlockDiagonal(heads, head, dtype=self.dtype, rngs=rngs)
        self.input_gate = BlockDiagonal(heads, head, dtype=self.dtype, rngs=rngs)
        self.decay = nnx.Param(_decay_logits(rngs.params(), (heads, head)), **vector("heads", None))

    def _init_sums(self, batch_size):
        return jnp.zeros((batch_size, self.state_width), self._state_dtype)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token: a product and a sum for each number of the state."""
        del context
        return 2 * self.state_width

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        u = named(self.value(x), "rows", "time", "heads")
        u, past = self.local(u, past, segment_ids=segment_ids)
        u = split_heads(u + spread(self.convolution_bias[...], u), self.heads)
        rate, share = (
            jax.nn.sigmoid(gate(u).astype(dtype)) for gate in (self.decay_gate, self.input_gate)
        )
        log_a = EXPONENT * rate * jax.nn.log_sigmoid(self.decay[...].astype(dtype))
        # 1 - a^2, above 0 because the square root has no derivative at 0.
        left = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(dtype).tiny)
        h, sums = diagonal_scan(
            merge_heads(jnp.sqrt(left) * share * u),
            merge_heads(jnp.exp(log_a)),
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        return jax.nn.gelu(self.gate(x)) * h.astype(x.dtype), sums, past
