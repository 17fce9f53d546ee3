"""Time mixing of RWKV-7, "Goose" (Peng et al. 2025, arXiv:2503.14456, section 4)."""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.delta_mixer import unit_length
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import LowRank, RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks
from linear_transformer.ops.delta import FORMS, low_rank_delta_attention

# Exponents of the initial token-shift weights over features, at depth 0.
POWERS = {"receptance": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}


@mechanism(
    "rwkv7",
    meaning="generalised delta rule with a decay for every key feature, and token shift",
    source="Peng et al. 2025, arXiv:2503.14456, section 4",
    options={"value_residual": True},
    encodes_order=True,
    uses_depth=True,
)
class RWKV7(RecurrentMixer):
    """Generalised delta rule with a vector decay w_t, a vector rate a_t and a removal key kappa_t.

        x'_t = x_t + (x_{t-1} - x_t) * mu'                              for each input '
        r, k, v = W' x'_t         a_t = sigmoid(a + lora(x'_t))         g_t = W_2 sigmoid(W_1 x'_t)
        w_t = exp(-exp(-1/2) sigmoid(w + lora_tanh(x'_t)))              at least 0.545
        kappa_t = k_t * xi / |k_t * xi|        k~_t = k_t * (1 + (a_t - 1) * alpha)
        S_t = (diag(w_t) - (a_t * kappa_t) kappa_t^T) S_{t-1} + k~_t v_t^T
        o_t = norm(S_t^T r_t) + (r_t . (rho * k~_t)) v_t                  y_t = W_O (g_t * o_t)

    With `value_residual`, each layer moves its values towards those of the first layer, v^1_t:

        v_t <- v_t + sigmoid(nu + lora_nu(x'_t)) * (v^1_t - v_t)

    Parameters are initialised by feature and depth, as in the released code: the output layer and
    every W_1 with zeros, every W_2 with an orthogonal matrix times 0.1.  Unlike there, the decay
    has l / L in place of l / (L - 1), and `output_scale` has no effect.
    w, a, kappa and k~ are fp32 or wider for any dtype of the activations; see `ops.delta`.

    Attributes:
      decay_rank, rate_rank, gate_rank, value_rank: ranks of the low-rank maps for w, a, g and v;
        None is 2.5, 2.5, 5 and 1.7 times sqrt(width), rounded to a multiple of 32.
      value_residual: whether values are mixed with those of the first layer of the stack.
      depth: l / L for layer l (from 0) of L, set by the model.
      form, chunk_size: see `ops.delta.low_rank_delta_attention`.
    """

    forms = FORMS
    local: TokenShift

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
        value_rank: int | None = None,
        value_residual: bool = False,
        depth: float = 0.0,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        ranks = {"decay_rank": decay_rank, "rate_rank": rate_rank, "gate_rank": gate_rank}
        checks.counts(**ranks, value_rank=value_rank)
        super().__init__(width, heads, bias=False, **options)
        self.value_residual = value_residual
        zeros = nnx.initializers.zeros
        self.output = self._output_layer(rngs, kernel_init=zeros)
        self.local = TokenShift(width, dtype=self.dtype)

        def linear(bound):  # weights are uniform up to bound / sqrt(width)
            init = nnx.initializers.variance_scaling(bound**2 / 3, "fan_in", "uniform")
            return self._linear(width, rngs, kernel_init=init)

        def low_rank(rank, factor, activation=None):
            if rank is None:
                rank = max(32, round(factor * width**0.5 / 32) * 32)
            up_init = nnx.initializers.orthogonal(0.1 * max(1.0, rank / width) ** 0.5)
            given = {"dtype": self.dtype, "rngs": rngs, "down_init": zeros, "up_init": up_init}
            return LowRank(width, rank, width, activation=activation, **given)

        self.receptance, self.key, self.value = (linear(bound) for bound in (0.5, 0.05, 0.5))
        self.decay = low_rank(decay_rank, 2.5, jnp.tanh)
        self.rate = low_rank(rate_rank, 2.5)
        self.gate = low_rank(gate_rank, 5, jax.nn.sigmoid)
        self.residual = low_rank(value_rank, 1.7) if value_residual else None
        # Epsilon of the released head norm: 1e-5 times its head width of 64.
        self.norm = HeadNorm(heads, self.value_width, center=True, epsilon=64e-5, dtype=self.dtype)

        feature = jnp.arange(width) / width
        last = jnp.arange(width) / max(width - 1, 1)
        zigzag = 2 * jnp.arange(self.key_width) / max(self.key_width - 1, 1) - 1
        zigzag = jnp.tile(zigzag * jnp.abs(zigzag), heads)
        shift = jnp.stack([1 - feature ** (power * (1 - depth)) for power in POWERS.values()])
        self.shift = nnx.Param(shift, **vector(None, "embed"))
        decay_bias = -5.5 + 6 * last ** (1 + depth**0.3) + 2.5 * zigzag
        self.decay_bias = nnx.Param(decay_bias, **vector("heads"))
        rate_bias = -0.19 + 0.3 * zigzag + 0.4 * (last - 0.5)
        self.rate_bias = nnx.Param(rate_bias, **vector("heads"))
        self.residual_bias = (
            nnx.Param(0.73 - 0.4 * (last - 0.5), **vector("heads")) if value_residual else None
        )
        self.removal_scale = nnx.Param(0.71 - 0.1 * (last - 0.5), **vector("heads"))  # xi
        self.replacement = nnx.Param(jnp.full((width,), 1.02), **vector("heads"))  # alpha
        bonus = jnp.full((heads, self.key_width), -0.04)
        self.bonus = nnx.Param(bonus, **vector("heads", None))  # rho

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for S^T kappa, a rank-one update with it, k~ v^T and S^T r."""
        del context  # the cost of a token does not depend on its position
        return 8 * self.heads * self.key_width * self.value_width

    def first_values(self, x_BTD, state=None, *, segment_ids=None):
        past = None if state is None else state["past"]
        inputs, _ = self._shifted(x_BTD, past, segment_ids)
        return self.value(inputs["value"])

    def _shifted(self, x, past, segment_ids):
        """Returns x'_t for each input, and the state of the token shift."""
        before, past = self.local(x, past, segment_ids=segment_ids)
        shifts = zip(POWERS, self.shift[...], strict=True)
        return {name: x + (before - x) * spread(shift, x) for name, shift in shifts}, past

    def _mix(self, x, sums, past, segment_ids, positions, first_BTI=None):
        del positions
        dtype = self._state_dtype
        inputs, past = self._shifted(x, past, segment_ids)

        def share(name, layer, bias):
            return jax.nn.sigmoid(layer(inputs[name]).astype(dtype) + bias[...].astype(dtype))

        r, k, v = (getattr(self, name)(inputs[name]) for name in ("receptance", "key", "value"))
        gate = self.gate(inputs["gate"])
        decay = share("decay", self.decay, self.decay_bias)
        rate = share("rate", self.rate, self.rate_bias)
        if first_BTI is not None:
            towards = share("value", self.residual, self.residual_bias).astype(v.dtype)
            v = v + towards * (first_BTI - v)
        log_decay = -math.exp(-0.5) * decay
        k = k.astype(dtype)
        kappa = k * self.removal_scale[...].astype(dtype)
        k = k * (1 + (rate - 1) * self.replacement[...].astype(dtype))
        r, k, v, log_decay, rate, kappa = (
            split_heads(a, self.heads) for a in (r, k, v, log_decay, rate, kappa)
        )
        kappa = unit_length(kappa)
        o, sums = low_rank_delta_attention(
            r,
            k,
            v,
            log_decay,
            rate * kappa,
            -kappa,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        bonus = jnp.sum(r * k * self.bonus[...].astype(dtype), axis=-1, keepdims=True)
        return gate * merge_heads(self.norm(o) + bonus.astype(v.dtype) * v), sums, past
