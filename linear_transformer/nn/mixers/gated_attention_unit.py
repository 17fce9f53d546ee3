"""Gated attention unit, quadratic or in mixed chunks (Hua et al. 2022, GAU and FLASH).

The unit is attention and feed-forward in one layer: `O = (U * A V) W_o`, with U, V = silu(x W) of
`expansion` times the width.  The only head is narrow; its queries and keys are scaled and shifted
copies of one Z = silu(x W_z).  The models of the paper have no other feed-forward.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.mixed_chunk import MixedChunkState, mixed_chunk_attention
from linear_transformer.ops.rectified import rectified_attention
from linear_transformer.types import Activations, Positions


class UnitOptions(ProjectionOptions, total=False):
    """Options of both variants."""

    expansion: int
    key_width: int
    rotary: bool


class GatedAttentionUnit(ProjectedMixer):
    """Base class of both variants: projections, gate and positions.

    Attributes:
      uses: names of the scaled and shifted copies of Z.
      rotary: whether queries and keys are rotated by position.
    """

    uses: tuple[str, ...]

    def __init__(
        self,
        width: int,
        *,
        expansion: int = 2,
        key_width: int = 128,
        rotary: bool = True,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, 1, **options)
        checks.counts(expansion=expansion, key_width=key_width)
        if key_width % 2:
            raise ValueError(f"key_width is {key_width}; rotary positions need an even one")
        self.key_width = key_width
        self.value_width = expansion * width
        self.rotary = rotary
        self.projection = self._linear(2 * self.value_width + key_width, rngs)
        small = nnx.initializers.normal(0.02)
        # Around 1, not around 0 as in the released code: with two factors of 0.02, the squared
        # scores and their gradients are too small for a short run.
        scales = 1 + small(rngs.params(), (len(self.uses), key_width), jnp.float32)
        self.scales = nnx.Param(scales, **vector(None, None))
        offsets = jnp.zeros((len(self.uses), key_width), jnp.float32)
        self.offsets = nnx.Param(offsets, **vector(None, None))
        relative = small(rngs.params(), (2, key_width), jnp.float32)
        self.relative = nnx.Param(relative, **vector(None, None))
        self.output = self._output_layer(rngs, self.value_width)

    def _project(
        self, x_BTD: Activations, positions: Positions
    ) -> tuple[Array, Array, list[Float[Array, "B T K"]]]:
        """Returns U, V, and the queries and keys in the order of `uses`."""
        uvz = jax.nn.silu(self.projection(x_BTD))
        u, v, z = jnp.split(uvz, [self.value_width, 2 * self.value_width], axis=-1)
        z_BTUK = jnp.repeat(z[:, :, None], len(self.uses), axis=2)
        z_BTUK = z_BTUK * spread(self.scales[...], z_BTUK) + spread(self.offsets[...], z_BTUK)
        if self.rotary:
            z_BTUK = rotate(z_BTUK, positions)
        return u, v, [z_BTUK[:, :, i] for i in range(len(self.uses))]

    def _bias(self, length: int) -> Float[Array, " E"]:
        """Bias by distance d: <R_d a, b> with rotary R, the paper's form for any input length."""
        query, key = self.relative[...]
        first = 0 if self.direction == "causal" else 1 - length
        distances = jnp.arange(first, length)[None]
        copies = jnp.broadcast_to(query, (*distances.shape, 1, self.key_width))
        return rotate(copies, distances)[0, :, 0] @ key


@mechanism(
    "flash_quad",
    meaning="gated attention unit: attention with squared ReLU scores over all tokens",
    source="Hua et al. 2022, arXiv:2202.10447, section 3",
    options={"divisor": None, "key_width": 64, "cache_capacity": 1024},
    rotary=True,
    feed_forward_ratio=0,
    layers=2,
    length_option="divisor",
    bidirectional={},
    causal_only=("cache_capacity",),
)
class FlashQuad(GatedAttentionUnit):
    """Quadratic unit: weights A = max(Q K^T / n + b, 0)^2 over all tokens, and a cache in decoding.

    Attributes:
      divisor: n, the training length; a constant, so that outputs do not depend on the length.
      cache_capacity: tokens that the decoding state can hold; older tokens are dropped.
    """

    uses = ("query", "key")

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        divisor: int = 512,
        cache_capacity: int = 1024,
        rngs: nnx.Rngs,
        **options: Unpack[UnitOptions],
    ):
        del heads  # the unit has one head
        checks.counts(divisor=divisor, cache_capacity=cache_capacity)
        self.divisor = divisor
        self.capacity = self.cache_capacity = cache_capacity
        super().__init__(width, rngs=rngs, **options)

    def _init_state(self, batch_size):
        features = {"keys": (self.key_width,), "values": (self.value_width,)}
        return token_cache.init_cache(batch_size, self.cache_capacity, features, self.dtype)

    def _forward(self, x_BTD, state, segment_ids, positions):
        batch, time = x_BTD.shape[:2]
        if positions is None:
            positions = _count(batch, time, None if state is None else state["length"])
        u_BTV, v_BSV, (q_BTK, k_BSK) = self._project(x_BTD, positions)
        where: dict[str, Any] = {"segment_ids_BT": segment_ids}
        if state is not None:
            new = {"keys": k_BSK, "values": v_BSV}
            held, state = token_cache.write(state, new, segment_ids, window=False)
            k_BSK, v_BSV, where = held.arrays["keys"], held.arrays["values"], held.where
        o_BTHV = rectified_attention(
            q_BTK[:, :, None],
            k_BSK[:, :, None],
            v_BSV[:, :, None],
            direction=self.direction,
            scale=1 / self.divisor,
            power=2,
            bias_E=self._bias(k_BSK.shape[1] * sequence_parallel.shards()),
            **where,
        )
        return self.output(u_BTV * o_BTHV[:, :, 0]), state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at the mean context; see `Mixer.flops_per_token`."""
        seen = context if self.direction == "bidirectional" else (context + 1) / 2
        return int(2 * (self.key_width + self.value_width) * seen)


@mechanism(
    "flash",
    meaning="gated attention unit: quadratic inside chunks, linear attention between chunks",
    source="Hua et al. 2022, arXiv:2202.10447, section 3",
    options={"chunk_size": 64, "key_width": 64},
    rotary=True,
    feed_forward_ratio=0,
    layers=2,
    bidirectional={},
)
class Flash(GatedAttentionUnit):
    """Mixed chunks: quadratic attention within `chunk_size` tokens, linear attention between."""

    uses = ("query", "key", "linear_query", "linear_key")

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        chunk_size: int = 64,
        rngs: nnx.Rngs,
        **options: Unpack[UnitOptions],
    ):
        del heads  # the unit has one head
        checks.counts(chunk_size=chunk_size)
        self.chunk_size = chunk_size
        super().__init__(width, rngs=rngs, **options)

    def _init_state(self, batch_size):
        sizes = (self.chunk_size, self.key_width, self.value_width)
        return MixedChunkState.zeros(batch_size, *sizes, self.dtype)

    def _forward(self, x_BTD, state, segment_ids, positions):
        if positions is None:
            batch, time = x_BTD.shape[:2]
            positions = _count(batch, time, None if state is None else state.length)
        u_BTV, v_BTV, (q, k, linear_q, linear_k) = self._project(x_BTD, positions)
        o_BTV, new_state = mixed_chunk_attention(
            q,
            k,
            linear_q,
            linear_k,
            v_BTV,
            self._bias(self.chunk_size),
            chunk_size=self.chunk_size,
            direction=self.direction,
            state=state,
            segment_ids_BT=segment_ids,
        )
        return self.output(u_BTV * o_BTV), None if state is None else new_state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at its mean place in a chunk; see `Mixer.flops_per_token`."""
        seen = min(self.chunk_size, context)
        if self.direction == "causal":
            seen = (seen + 1) / 2
        linear = 4 * self.key_width * self.value_width
        return int(2 * (self.key_width + self.value_width) * seen) + linear


def _count(batch: int, time: int, start_B: Array | None = None) -> Positions:
    first = sequence_parallel.offset(time) if start_B is None else start_B[:, None]
    return jnp.broadcast_to(first + jnp.arange(time), (batch, time))
