"""Lightning attention, the mixer of TransNormerLLM (Qin et al. 2024, arXiv:2405.17381)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.layers.norms import make_norm
from linear_transformer.nn.layers.positions import LRPE
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.decay import decayed_attention


@mechanism(
    "lightning",
    meaning="linear attention with a fixed decay for each head and layer",
    source="Qin et al. 2024, arXiv:2405.17381",
    encodes_order=True,
    uses_depth=True,
)
@mechanism(
    "lightning_lrpe",
    meaning="lightning attention with LRPE, the first layer of TransNormerLLM",
    source="Qin et al. 2024, arXiv:2405.17381",
    defaults={"lrpe": True},
    encodes_order=True,
    uses_depth=True,
)
class LightningAttention(RecurrentMixer):
    """Linear attention with a fixed decay per head and layer, a norm without gain, a linear gate.

        S_t = lambda S_{t-1} + k_t v_t^T      y_t = W_O (norm(S_t^T q_t) * W_U x_t)

    Queries and keys pass through swish, and lambda = exp(-8 h / H (1 - l / L)) for head h (from 1)
    of H in layer l (from 0) of L: later heads and earlier layers are more local.

    Attributes:
      depth: l / L, set by the model.
      lrpe: whether queries and keys get `nn.layers.positions.LRPE`; first layer only in the paper.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        lrpe: bool = False,
        depth: float = 0.0,
        rngs: nnx.Rngs,
        **options: Unpack[KeyedOptions],
    ):
        super().__init__(width, heads, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.query = self._linear(heads * self.key_width, rngs)
        self.key = self._linear(heads * self.key_width, rngs)
        self.value = self._linear(width, rngs)
        self.gate = self._linear(width, rngs)
        self.norm = make_norm("simplermsnorm", width, self.dtype, rngs)
        self.lrpe = LRPE(self.key_width, rngs=rngs) if lrpe else None
        # A parameter, so that it differs between layers of a scan; `stop_gradient` fixes its value.
        log_decay = -8 * jnp.arange(1, heads + 1) / heads * (1 - depth)
        self.log_decay = nnx.Param(log_decay, **vector("heads"))

    def _mix(self, x, sums, past, segment_ids, positions):
        q, k, v = self._by_head(x, self.query, self.key, self.value)
        q, k = jax.nn.silu(q), jax.nn.silu(k)
        if self.lrpe is not None:
            q, k = self.lrpe(q, positions), self.lrpe(k, positions)
        log_decay_H = jnp.minimum(lax.stop_gradient(self.log_decay[...]), 0)
        o, sums = decayed_attention(
            q, k, v, log_decay_H, initial_state=sums, **self._recurrence(segment_ids)
        )
        return self.norm(merge_heads(o)) * self.gate(x), sums, past
