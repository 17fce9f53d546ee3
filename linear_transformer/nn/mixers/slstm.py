"""sLSTM, the scalar memory of xLSTM (Beck et al. 2024, arXiv:2405.04517, equations 8-18)."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import BlockDiagonal, merge_heads
from linear_transformer.nn.layers.short_convolution import ShortConvolution, silu_convolution
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import LayerOptions
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.slstm import SLSTMState, slstm
from linear_transformer.types import PRNGKey


@mechanism(
    "slstm",
    meaning="scalar memory of xLSTM: exponential gates that read the output before, sequential",
    source="Beck et al. 2024, arXiv:2405.04517, equations 8-18",
    encodes_order=True,
    uses_depth=True,
)
class SLSTM(RecurrentMixer):
    """Scalar memory with exponential input gates; all gates read the last output of their head.

        z, o = W x_t + R h_{t-1} + b                   i, f = W' u_t + R' h_{t-1} + b'
        c_t = sigmoid(f) c_{t-1} + exp(i) tanh(z)      n_t = sigmoid(f) n_{t-1} + exp(i)
        h_t = sigmoid(o) c_t / n_t                     u = silu(convolution(x) + b_c)
        y_t = W_O norm(h_t)

    It is sequential over time, in training too: no form computes many tokens at once, because the
    gates of a token need h of the token before.  R is block-diagonal, one block per head.  R and
    the biases begin as in the released code: R = 0, and forget biases fall from 5 to -7 over the
    features of a head.  W is dense, as in the equations, and W_O is that of other mixers; the
    released block has a W per head and no W_O.  A first token with features of zeros has h = 0, so
    its gradient is large: a factor of up to 300 from the norm, with the released epsilon of 1e-5.

    Attributes:
      convolution: tokens in the window of the short convolution.
      depth: l / L for layer l (from 0) of L, set by the model; later layers begin with more memory.
    """

    local: ShortConvolution

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        convolution: int = 4,
        depth: float = 0.0,
        rngs: nnx.Rngs,
        **options: Unpack[LayerOptions],
    ):
        super().__init__(width, heads, bias=True, **options)

        def forget_biases(key: PRNGKey, shape: tuple[int], dtype: DTypeLike) -> Float[Array, " D"]:
            del key, shape
            place = jnp.linspace(0, 1, self.value_width, dtype=dtype)
            return jnp.tile(5 - 12 * place ** (0.3 + 1.3 * depth), heads)

        self.output = self._output_layer(rngs)
        self.local = ShortConvolution(width, convolution, dtype=self.dtype, rngs=rngs)
        self.convolution_bias = nnx.Param(jnp.zeros((width,)), **vector("embed"))
        self.value = self._linear(width, rngs)
        self.input_gate = self._linear(width, rngs)
        self.forget_gate = self._linear(width, rngs, bias_init=forget_biases)
        self.output_gate = self._linear(width, rngs)
        self.recurrent = BlockDiagonal(
            heads,
            self.value_width,
            4 * self.value_width,
            use_bias=False,
            kernel_init=nnx.initializers.zeros,
            dtype=self.dtype,
            rngs=rngs,
        )
        self.norm = HeadNorm(heads, self.value_width, center=True, dtype=self.dtype)

    def _init_sums(self, batch_size):
        shape = (batch_size, self.heads, self.value_width)
        return SLSTMState(*(jnp.zeros(shape, self._state_dtype) for _ in SLSTMState._fields))

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for c, n and h, without R; see `Mixer.flops_per_token`."""
        del context  # the cost of a token does not depend on its position
        return 7 * self.width

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        (u,), past = silu_convolution(self.local, self.convolution_bias, (x,), past, segment_ids)
        z, o = self._by_head(x, self.value, self.output_gate)
        i, f = self._by_head(u, self.input_gate, self.forget_gate)
        h, sums = slstm(
            jnp.concatenate([z, i, f, o], axis=-1),
            self.recurrent.kernel[...],
            initial_state=sums,
            segment_ids_BT=segment_ids,
        )
        return merge_heads(self.norm(h)), sums, past
