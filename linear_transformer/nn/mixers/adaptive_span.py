"""Softmax attention with a learned span for each head (Sukhbaatar et al. 2019)."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.transformer_xl import RelativeAttention, RelativeOptions
from linear_transformer.nn.parameters import embedding, vector
from linear_transformer.ops import checks


@mechanism(
    "adaptive_span",
    meaning="softmax attention over a window with a soft mask, of a learned span for each head",
    source="Sukhbaatar et al. 2019, arXiv:1905.07799, section 2",
    options={"window": 256},
    encodes_order=True,
)
class AdaptiveSpan(RelativeAttention):
    """Softmax attention to the last S tokens, multiplied by a soft mask of the distance.

        m_z(d) = clip((R + z - d) / R, 0, 1)
        a_ts = m_z(t - s) exp(q_t.(k_s + p_{t-s}) / sqrt(K)) / (the sum of these over s)

    Each head learns a span z, from 0 at first to S at most, and all heads share the vectors p_d.
    The gradient of z ignores the bounds, so a span can leave them.  The paper adds an L1 penalty on
    the spans to the loss, and the losses of this library do not: add a multiple of `spans()`.

    Differences from the released code: a token attends to itself, at distance 0; each layer has its
    own p_d; and all S distances are computed, also those that the spans of all heads mask.

    Attributes:
      window: S.
      ramp: R, the distances over which the mask falls from 1 to 0.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        ramp: int = 32,
        rngs: nnx.Rngs,
        **options: Unpack[RelativeOptions],
    ):
        checks.counts(ramp=ramp)
        super().__init__(width, heads, rngs=rngs, **options)
        self.ramp = ramp
        shape = (self.window, self.key_width)
        distances_WK = nnx.initializers.normal(1.0)(rngs.params(), shape)
        self.distances = nnx.Param(distances_WK, **embedding(None, None))
        self.span = nnx.Param(jnp.zeros(heads), **vector("heads"))  # z / S

    def spans(self) -> Float[Array, " H"]:
        """Returns the span z of each head, in tokens."""
        span_H = self.span[...]
        return self.window * (span_H + lax.stop_gradient(jnp.clip(span_H, 0, 1) - span_H))

    def _by_distance(self):
        d_W = jnp.arange(self.window)
        mask_HW = jnp.clip((self.ramp + self.spans()[:, None] - d_W) / self.ramp, 0, 1)
        some_HW = mask_HW > 0
        distances_WxK = self.distances[...].astype(self.dtype)[:, None]
        return {
            "distances_WHK": jnp.broadcast_to(
                distances_WxK, (self.window, self.heads, self.key_width)
            ),
            "log_factors_HW": jnp.where(some_HW, jnp.log(jnp.where(some_HW, mask_HW, 1)), -jnp.inf),
        }
