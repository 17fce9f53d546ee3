"""mLSTM, the matrix memory of xLSTM (Beck et al. 2024, arXiv:2405.04517, equations 19-27)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.short_convolution import ShortConvolution, silu_convolution
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.log_space import at_most_zero
from linear_transformer.ops.normalizer import append_ones
from linear_transformer.types import PRNGKey, SegmentIds


@mechanism(
    "mlstm",
    meaning="matrix memory of xLSTM, with exponential input gates and sigmoid forget gates",
    source="Beck et al. 2024, arXiv:2405.04517, equations 19-27",
    encodes_order=True,
)
class MLSTM(RecurrentMixer):
    """Matrix memory with exponential input gates, sigmoid forget gates and a normaliser.

        C_t = f_t C_{t-1} + i_t k_t v_t^T     n_t = f_t n_{t-1} + i_t k_t     i_t = exp(w_i x_t)
        y_t = W_O (sigmoid(W_G x_t) * norm(C_t^T q_t / max(|n_t^T q_t|, 1)))

    Keys are divided by sqrt(K).  C_t and n_t are stored divided by exp(m_t), which changes no
    output, with m_t = max(log f_t + m_{t-1}, log i_t) and m = 0 before the first token.  As in the
    paper's block, the input of queries and keys is silu(convolution(x)).

    Attributes:
      convolution: tokens in the window of the short convolution.
      epsilon: lower bound of the divisor, in units of exp(m_t).
    """

    local: ShortConvolution

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        convolution: int = 4,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
        **options: Unpack[KeyedOptions],
    ):
        checks.positive(epsilon=epsilon)
        super().__init__(width, heads, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.epsilon = epsilon
        self.local = ShortConvolution(width, convolution, dtype=self.dtype, rngs=rngs)
        self.convolution_bias = nnx.Param(jnp.zeros((width,)), **vector("embed"))
        self.query = self._linear(heads * self.key_width, rngs)
        self.key = self._linear(heads * self.key_width, rngs)
        self.value = self._linear(width, rngs)
        self.gate = self._linear(width, rngs, use_bias=True)
        self.input_gate = self._linear(heads, rngs, use_bias=True)
        self.forget_gate = self._linear(heads, rngs, use_bias=True, bias_init=_open_gates)
        self.norm = HeadNorm(heads, self.value_width, center=True, dtype=self.dtype)

    @property
    def _state_shape(self):
        return self.key_width, self.value_width + 1

    def _init_sums(self, batch_size):
        return {
            "memory": super()._init_sums(batch_size),
            "maximum": jnp.zeros((batch_size, self.heads), self._state_dtype),
        }

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        sums = self._init_sums(x.shape[0]) if sums is None else sums
        (local,), past = silu_convolution(
            self.local, self.convolution_bias, (x,), past, segment_ids
        )
        q, k = self._by_head(local, self.query, self.key)
        v = split_heads(self.value(x), self.heads)
        log_input = self.input_gate(x).astype(dtype)
        log_forget = jax.nn.log_sigmoid(self.forget_gate(x).astype(dtype))
        before, maximum = running_maximum(log_forget, log_input, sums["maximum"], segment_ids)
        k = k * jnp.exp(log_input - maximum)[..., None] * self.key_width**-0.5
        o, memory = decayed_attention(
            q,
            k,
            append_ones(v).astype(dtype),
            at_most_zero(log_forget + before - maximum),
            initial_state=sums["memory"],
            **self._recurrence(segment_ids),
        )
        divisor = jnp.maximum(jnp.abs(o[..., -1:]), jnp.exp(-maximum)[..., None])
        o = o[..., :-1] / jnp.maximum(divisor, self.epsilon)
        o = merge_heads(self.norm(o))
        return jax.nn.sigmoid(self.gate(x)) * o, {"memory": memory, "maximum": maximum[:, -1]}, past


def _open_gates(key: PRNGKey, shape: tuple[int], dtype: DTypeLike) -> Float[Array, " H"]:
    """Returns biases for memories of 20 to 400 tokens, as in the released code."""
    del key
    return jnp.linspace(3.0, 6.0, *shape, dtype=dtype)


def running_maximum(
    log_forget_BTH: Float[Array, "B T H"],
    log_input_BTH: Float[Array, "B T H"],
    before_BH: Float[Array, "B H"],
    segment_ids_BT: SegmentIds | None,
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Computes m_{t-1} and m_t = max(log f_t + m_{t-1}, log i_t), with m = 0 before a segment.

    `before_BH` is m in the state.  Outputs do not depend on m, so m has no gradient.
    """
    arrays = (log_forget_BTH, log_input_BTH, before_BH)
    log_forget, log_input, before = (lax.stop_gradient(x) for x in arrays)
    begins_B = jnp.broadcast_to(sequence_parallel.shard() == 0, before.shape[:1])
    first = jnp.zeros_like(log_forget)
    first = first.at[:, 0].set(jnp.where(begins_B[:, None], before, 0))
    starts = jnp.zeros(log_forget.shape[:2], bool)
    if segment_ids_BT is not None:
        starts = segments.starts(segment_ids_BT)
        if sequence_parallel.shards() > 1:
            begins_B |= ~sequence_parallel.continues(segment_ids_BT)
    starts = starts.at[:, 0].set(begins_B)[..., None]
    # The maps m -> max(m + a, b) compose; the map of a first token is constant, with a = -inf.
    a = jnp.where(starts, -jnp.inf, log_forget)
    b = jnp.where(starts, jnp.maximum(log_forget + first, log_input), log_input)

    def apply(a, b, m):
        return jnp.where(a == -jnp.inf, b, jnp.maximum(m + a, b))  # NaN - inf would be NaN

    def compose(earlier, later):
        (a_0, b_0), (a_1, b_1) = earlier, later
        return jnp.where(a_1 == -jnp.inf, a_1, a_0 + a_1), apply(a_1, b_1, b_0)

    a, maximum = lax.associative_scan(compose, (a, b), axis=1)
    if sequence_parallel.shards() > 1:
        own_BH2 = jnp.stack([a[:, -1], maximum[:, -1]], axis=-1)
        before_BH2, _ = sequence_parallel.entering_value(
            lambda x, y: jnp.stack(
                compose((x[..., 0], x[..., 1]), (y[..., 0], y[..., 1])), axis=-1
            ),
            own_BH2,
            jnp.zeros_like(own_BH2),
            None,
        )
        maximum = apply(a, maximum, before_BH2[:, None, :, 1])
    shifted = sequence_parallel.halo(maximum, before=1)[:, :-1]
    return jnp.where(starts, first, shifted), maximum
