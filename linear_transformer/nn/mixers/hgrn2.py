"""HGRN2, a gated linear RNN with an expanded state (Qin et al. 2024, arXiv:2404.07904)."""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.layers.norms import make_norm
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.log_space import at_most_zero


@mechanism(
    "hgrn2",
    meaning="gated linear RNN: the key is what the forget gate leaves",
    source="Qin et al. 2024, arXiv:2404.07904",
    encodes_order=True,
    uses_depth=True,
)
class HGRN2(RecurrentMixer):
    """Gated linear RNN with key 1 - f_t; the lower bound of the forget gate f_t grows with depth.

        f_t = gamma + (1 - gamma) * sigmoid(W_F x_t)     S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T
        y_t = W_O norm(S_t^T swish(W_Q x_t))

    In the paper the bounds of all layers are sums of one softmax.  Here each layer has a parameter,
    gamma = sigmoid(parameter), with the same initial value, l / L (clipped to [0.01, 0.99]).

    For an input of zeros, query and output are 0.  A norm does not depend on the length of its
    input, so the gradient of such a token is up to 1 / sqrt(epsilon) = 1000 times the usual one.

    Attributes:
      key_width: features of the gate per head, the expansion of the state; None is width / heads.
      depth: l / L for layer l (from 0) of L, set by the model.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        depth: float = 0.0,
        rngs: nnx.Rngs,
        **options: Unpack[KeyedOptions],
    ):
        super().__init__(width, heads, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.query = self._linear(heads * self.key_width, rngs)
        self.forget = self._linear(heads * self.key_width, rngs)
        self.value = self._linear(width, rngs)
        self.norm = make_norm("rmsnorm", width, self.dtype, rngs)
        bound = min(max(depth, 0.01), 0.99)
        logit = math.log(bound / (1 - bound))
        lower_bound = jnp.full((heads, self.key_width), logit)
        self.lower_bound = nnx.Param(lower_bound, **vector("heads", None))

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        q, forget, v = self._by_head(x, self.query, self.forget, self.value)
        bound = self.lower_bound[...].astype(self._state_dtype)
        log_decay = jnp.logaddexp(
            jax.nn.log_sigmoid(bound),
            jax.nn.log_sigmoid(-bound) + jax.nn.log_sigmoid(forget.astype(bound.dtype)),
        )
        log_decay = at_most_zero(log_decay)
        k = -jnp.expm1(log_decay)
        o, sums = decayed_attention(
            jax.nn.silu(q),
            k.astype(v.dtype),
            v,
            log_decay,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        return self.norm(merge_heads(o)), sums, past
