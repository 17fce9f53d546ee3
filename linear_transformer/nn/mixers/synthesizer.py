"""Synthesizer: attention weights without keys (Tay et al. 2021)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.cached_softmax import CachedSoftmax
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectionOptions
from linear_transformer.nn.parameters import embedding
from linear_transformer.ops import checks
from linear_transformer.types import Positions

VARIANTS = ("dense", "random")


@mechanism(
    "synthesizer",
    meaning="softmax attention whose scores come from the query's token or position alone",
    source="Tay et al. 2021, arXiv:2005.00743, section 3",
    options={"length": 512, "variant": "dense"},
    length_option="length",
    limits_length=True,
    bidirectional={},
)
class Synthesizer(CachedSoftmax):
    """Attention with weights softmax over s of r_t^T w_s / sqrt(K), w_s of the position s.

    "dense" has r_t = relu(W x_t + b), so that w are the columns of the paper's second layer, whose
    bias is left out.  "random" has a learned r_t for each position, the paper's factorised random
    Synthesizer with the head width as its rank.  Scores of T x T are never stored.

    Attributes:
      variant: "dense" or "random".
      length: number of positions.  The caller must keep positions below it; `capacity` is equal.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        variant: str = "dense",
        length: int = 1024,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        checks.choice("variant", variant, VARIANTS)
        checks.counts(length=length)
        super().__init__(width, heads, cache_capacity=length, **options)
        self.key_value_heads = heads
        self.variant = variant
        self.length = length
        self.query = self._linear(width, rngs) if variant == "dense" else self._table(rngs)
        self.keys = self._table(rngs)
        self.value = self._linear(width, rngs)
        self.output = self._output_layer(rngs)

    def _table(self, rngs: nnx.Rngs) -> nnx.Param:
        """Makes a vector for each position and head, (length, H, K)."""
        shape = (self.length, self.heads, self.key_width)
        # Scores have unit variance at first, after the scale of 1 / sqrt(K).
        weights_LHK = nnx.initializers.normal(1.0)(rngs.params(), shape, jnp.float32)
        return nnx.Param(weights_LHK, **embedding(None, "heads", None))

    def _forward(self, x_BTD, state, segment_ids, positions):
        if positions is None:
            raise ValueError("positions is None; synthesizer has a key for each of them")
        (v_BTHK,) = self._by_head(x_BTD, self.value)
        if isinstance(self.query, nnx.Param):
            q_BTHK = self._of_positions(self.query, positions)
        else:
            (q_BTHK,) = self._by_head(x_BTD, self.query)
            q_BTHK = jax.nn.relu(q_BTHK)
        k_BTHK = self._of_positions(self.keys, positions)
        o_BTHK, state = self._attend(q_BTHK, k_BTHK, v_BTHK, state, segment_ids)
        return self.output(merge_heads(o_BTHK)), state

    def _of_positions(self, table: nnx.Param, positions: Positions) -> Float[Array, "B T H K"]:
        return jnp.take(table[...], positions, axis=0, mode="clip").astype(self.dtype)
