"""Multi-head LSH attention (Kitaev et al. 2020, Reformer), the lsh-X baseline."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.ops import checks
from linear_transformer.ops.hashing import (
    CHUNKINGS,
    buckets_of_rounds,
    lsh_attention,
    lsh_attention_to_cache,
)
from linear_transformer.ops.non_finite import finite_tokens, keep, set_nan


@mechanism(
    "lsh",
    meaning="Reformer: softmax attention among the tokens of the same hash",
    source="Kitaev et al. 2020, arXiv:2001.04451, section 2",
    options={"rounds": 4, "buckets": 16, "chunk_size": 32, "cache_capacity": 1024},
    bidirectional={"chunking": "sorted"},
    causal_only=("cache_capacity",),
)
class LSHAttention(ProjectedMixer):
    """LSH attention: queries serve as keys, and fixed random rotations hash them.

    Attributes:
      rounds: number of hashes of each token; X in lsh-X.
      buckets: number of buckets of each hash; even.
      chunk_size, chunking: see `ops.hashing.lsh_attention`.  Only "window" can decode, because the
        chunks of "sorted" depend on the number of later tokens.
      seed: seed of the rotations, which all layers share.
      cache_capacity: tokens that the decoding state can hold; older tokens are dropped.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rounds: int = 4,
        buckets: int = 64,
        chunk_size: int = 32,
        chunking: str = "window",
        seed: int = 0,
        cache_capacity: int = 1024,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.counts(rounds=rounds, chunk_size=chunk_size, cache_capacity=cache_capacity)
        if buckets < 2 or buckets % 2:
            raise ValueError(f"buckets is {buckets}; it must be even and positive")
        checks.choice("chunking", chunking, CHUNKINGS)
        if chunking == "window" and self.direction != "causal":
            raise ValueError(f"direction {self.direction!r} needs chunking 'sorted'")
        self.key_width = head_width(width, heads)
        self.rounds = rounds
        self.buckets = buckets
        self.chunk_size = chunk_size
        self.chunking = chunking
        self.seed = seed
        self.capacity = self.cache_capacity = cache_capacity
        self.query = self._linear(width, rngs)
        self.value = self._linear(width, rngs)
        self.output = self._output_layer(rngs)

    @property
    def rotations(self) -> jax.Array:
        """Rotations, (rounds, K, buckets / 2): constants, which are neither trained nor saved."""
        shape = (self.rounds, self.key_width, self.buckets // 2)
        return jax.random.normal(jax.random.key(self.seed), shape, jnp.float32)

    def _init_state(self, batch_size):
        if self.chunking != "window":
            raise ValueError(f"chunking {self.chunking!r} cannot decode; use 'window'")
        shape = (self.heads, self.key_width)
        features = {"queries": shape, "values": shape}
        cache = token_cache.init_cache(batch_size, self.cache_capacity, features, self.dtype)
        buckets_shape = (batch_size, self.cache_capacity, self.heads, self.rounds)
        return cache | {"buckets": jnp.zeros(buckets_shape, jnp.int32)}

    def _forward(self, x_BTD, state, segment_ids, positions):
        del positions  # only the order of the tokens matters
        time, filled_BS = x_BTD.shape[1], None
        q_BTHK, v_BTHK = self._by_head(x_BTD, self.query, self.value)
        if state is not None:
            finite_BT = finite_tokens(q_BTHK, v_BTHK)
            q_BTHK = set_nan(~finite_BT, q_BTHK.astype(self.dtype))
            new = {"queries": q_BTHK, "values": v_BTHK}
            new["buckets"] = buckets_of_rounds(keep(finite_BT, q_BTHK), self.rotations)
            held, state = token_cache.write(state, new, segment_ids, window=False)
            if time == 1:
                o_BTHK = lsh_attention_to_cache(
                    q_BTHK,
                    *(held.arrays[name] for name in new),
                    chunk_size=self.chunk_size,
                    **held.where,
                )
                return self.output(merge_heads(o_BTHK)), state
            held = token_cache.in_order(held)
            q_BTHK, v_BTHK = held.arrays["queries"], held.arrays["values"]
            segment_ids = held.run_BS
            filled_BS = held.positions_BS >= 0
        o_BTHK = lsh_attention(
            q_BTHK,
            v_BTHK,
            self.rotations,
            chunk_size=self.chunk_size,
            chunking=self.chunking,
            direction=self.direction,
            segment_ids_BT=segment_ids,
            key_mask_BS=filled_BS,
        )
        return self.output(merge_heads(o_BTHK[:, -time:])), state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for hashes and two chunks per round; see `Mixer.flops_per_token`."""
        seen = min(2 * self.chunk_size, context)
        width = self.heads * self.key_width
        return self.rounds * width * (self.buckets + 4 * seen)
