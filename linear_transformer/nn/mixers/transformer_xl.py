"""Transformer-XL: softmax attention with relative positions and a memory (Dai et al. 2019)."""

from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.positions import sinusoidal
from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.relative import relative_attention


class RelativeOptions(ProjectionOptions, total=False):
    """Options of every `RelativeAttention`."""

    window: int


class RelativeAttention(ProjectedMixer):
    """Softmax attention to the last w tokens, with a score for each query and distance.

    A subclass defines `_by_distance`.  The state holds keys and values of the last w - 1 tokens.

    Attributes:
      window: w.
    """

    directions = ("causal",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int = 256,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        if window < 2:
            raise ValueError(f"window is {window}; it must be 2 or more")
        self.window = window
        self._make_projections(rngs)
        self.output = self._output_layer(rngs)

    def _by_distance(self) -> dict[str, Any]:
        """Returns the arguments of `relative_attention` that do not depend on the tokens."""
        raise NotImplementedError

    def _init_state(self, batch_size):
        shape = (self.heads, self.key_width)
        features = {"keys": shape, "values": shape}
        return token_cache.init_cache(batch_size, self.window - 1, features, self.dtype)

    def _forward(self, x_BTD, state, segment_ids, positions):
        del positions
        q_BTHK, k_BTHK, v_BTHK = self._by_head(x_BTD, self.query, self.key, self.value)
        key_mask = None
        if state is not None:
            held, segment_ids, key_mask, state = token_cache.extend(
                state, {"keys": k_BTHK, "values": v_BTHK}, segment_ids
            )
            k_BTHK, v_BTHK = held["keys"], held["values"]
        o_BTHK = relative_attention(
            q_BTHK,
            k_BTHK,
            v_BTHK,
            segment_ids_BS=segment_ids,
            key_mask_BS=key_mask,
            **self._by_distance(),
        )
        return self.output(merge_heads(o_BTHK)), state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at the mean context; see `Mixer.flops_per_token`."""
        return int(6 * self.heads * self.key_width * min(self.window, (context + 1) / 2))


@mechanism(
    "transformer_xl",
    meaning="softmax attention over a window, with learned weights of the distance",
    source="Dai et al. 2019, arXiv:1901.02860, section 3",
    options={"window": 256},
    encodes_order=True,
)
class TransformerXL(RelativeAttention):
    """Softmax attention to the last w tokens with the scores of section 3.3,

        ((q_t + u).k_s + (q_t + b).r_{t-s}) / sqrt(K),

    where r_d is a projection of sinusoidal features of the distance d.  The state is the paper's
    memory.  A token always attends to w tokens; in the paper, to those of its own segment and a
    memory of fixed length.

    Attributes:
      window: w.
    """

    def __init__(
        self, width: int, heads: int, *, rngs: nnx.Rngs, **options: Unpack[RelativeOptions]
    ):
        super().__init__(width, heads, rngs=rngs, **options)
        self.distance = self._linear(width, rngs, use_bias=False, per_token=False)
        biases_HK = [jnp.zeros((heads, self.key_width)) for _ in range(2)]
        self.content_bias, self.position_bias = (
            nnx.Param(x, **vector("heads", None)) for x in biases_HK
        )

    def _by_distance(self):
        d_xW = jnp.arange(self.window)[None]
        features = sinusoidal(d_xW, self.width + self.width % 2)[..., : self.width]
        return {
            "distances_WHK": split_heads(self.distance(features.astype(self.dtype)), self.heads)[0],
            "content_bias_HK": self.content_bias[...],
            "position_bias_HK": self.position_bias[...],
        }

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token, with its part of the r_d; see `Mixer.flops_per_token`."""
        distances = 2 * self.width**2 * self.window / context
        return super().flops_per_token(context) + int(distances)
