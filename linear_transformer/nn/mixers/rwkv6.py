"""Time mixing of RWKV-6, "Finch" (Peng et al. 2024, arXiv:2404.05892, section 4)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import LowRank, RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks
from linear_transformer.ops.decay import decayed_attention

INPUTS = ("receptance", "key", "value", "gate", "decay")


@mechanism(
    "rwkv6",
    meaning="a decay for every key feature, a bonus for the current token, and token shift",
    source="Peng et al. 2024, arXiv:2404.05892, section 4",
    encodes_order=True,
    uses_depth=True,
)
class RWKV6(RecurrentMixer):
    """Data-dependent vector decay, a bonus for the current token, and a data-dependent token shift.

        x'_t = x_t + (x_{t-1} - x_t) * (mu' + lora'(x_t + (x_{t-1} - x_t) * mu))    for each input '
        r, k, v, g = W' x'_t        w_t = exp(-exp(b + lora_w(x'_t)))
        o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t         S_t = diag(w_t) S_{t-1} + k_t v_t^T
        y_t = W_O (silu(g_t) * norm(o_t))

    Here lora(z) = W_2 tanh(W_1 z).  Mixing weights, decays and bonuses are initialised by feature
    and depth, as in the released code.

    Attributes:
      mix_rank, decay_rank: ranks of W_2 W_1 for the mixing of the inputs and for the decay.
      depth: l / L for layer l (from 0) of L, set by the model.
    """

    local: TokenShift

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mix_rank: int = 32,
        decay_rank: int = 64,
        depth: float = 0.0,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        checks.counts(mix_rank=mix_rank, decay_rank=decay_rank)
        super().__init__(width, heads, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.local = TokenShift(width, dtype=self.dtype)
        self.receptance = self._linear(width, rngs)
        self.key = self._linear(width, rngs)
        self.value = self._linear(width, rngs)
        self.gate = self._linear(width, rngs)
        low_rank = {"activation": jnp.tanh, "dtype": self.dtype, "rngs": rngs}
        self.mix = nnx.List(
            [LowRank(width, mix_rank, width, axis="embed", **low_rank) for _ in INPUTS]
        )
        self.decay = LowRank(width, decay_rank, width, **low_rank)
        # Epsilon of the released head norm: 1e-5 times the square of its divisor 8.
        self.norm = HeadNorm(heads, self.value_width, center=True, epsilon=64e-5, dtype=self.dtype)

        feature = jnp.arange(width) / width
        last = jnp.arange(width) / max(width - 1, 1)
        early = 1 - feature ** (1 - depth)
        powers = {
            "receptance": 1 - feature ** ((1 - depth) / 2),
            "key": early,
            "value": early - 0.3 * depth,
            "gate": 1 - feature ** ((1 - depth) / 2),
            "decay": early,
        }
        self.shift_of_mix = nnx.Param(early, **vector("embed"))
        shift = jnp.stack([powers[name] for name in INPUTS])
        self.shift = nnx.Param(shift, **vector(None, "embed"))
        log_log_decay = -6 + 5 * last ** (0.7 + 1.3 * depth)
        self.log_log_decay = nnx.Param(log_log_decay, **vector("heads"))
        zigzag = ((jnp.arange(width) + 1) % 3 - 1) * 0.1
        bonus = depth * (1 - last) + zigzag
        self.bonus = nnx.Param(bonus.reshape(heads, self.key_width), **vector("heads", None))

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        before, past = self.local(x, past, segment_ids=segment_ids)
        change = before - x
        z = x + change * spread(self.shift_of_mix[...], x)
        inputs = {
            name: x + change * (spread(shift, x) + mix(z))
            for name, shift, mix in zip(INPUTS, self.shift[...], self.mix, strict=True)
        }
        r, k, v = (
            split_heads(getattr(self, name)(inputs[name]), self.heads)
            for name in ("receptance", "key", "value")
        )
        logits = self.log_log_decay[...].astype(dtype) + self.decay(inputs["decay"]).astype(dtype)
        o, sums = decayed_attention(
            r,
            k,
            v,
            split_heads(-jnp.exp(logits), self.heads),
            bonus_HK=self.bonus[...],
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        o = merge_heads(self.norm(o))
        return jax.nn.silu(self.gate(inputs["gate"])) * o, sums, past
