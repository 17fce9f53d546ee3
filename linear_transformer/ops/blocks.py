"""What the chunk forms share: blocks of chunks, heads first, and the masks of packed segments.

Time is cut into blocks of G chunks of C tokens, and one loop runs over the blocks, so that every
temporary is of the size of a block and stays in the cache.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def read(x_BTHK: Array, n: Int[Array, ""], chunk: int, block: int) -> Float[Array, "B H G C K"]:
    """Block n, heads first, cut into its chunks."""
    batch, _, heads, width = x_BTHK.shape
    x = lax.dynamic_slice_in_dim(x_BTHK, n * block, block, axis=1)
    return x.reshape(batch, block // chunk, chunk, heads, width).transpose(0, 3, 1, 2, 4)


def write(x_BTHK: Array, block_BHGCK: Array, n: Int[Array, ""]) -> Array:
    batch, heads, chunks, chunk, width = block_BHGCK.shape
    rows = block_BHGCK.transpose(0, 2, 3, 1, 4).reshape(batch, chunks * chunk, heads, width)
    start = n * chunks * chunk
    return lax.dynamic_update_slice_in_dim(x_BTHK, rows.astype(x_BTHK.dtype), start, axis=1)


def matmul(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """a @ b with operands in the narrower input type and sums in `dtype`."""
    narrow = min(a.dtype, b.dtype, key=lambda d: jnp.finfo(d).bits)
    return jnp.matmul(a.astype(narrow), b.astype(narrow), preferred_element_type=dtype)


class Masks(NamedTuple):
    """Which terms a block keeps: all True (None) without segments."""

    pairs: Bool[Array, "#B 1 #G C C"]  # key j of the chunk is visible to query i
    read: Bool[Array, "B 1 G C 1"] | None  # the query is in the segment of the entering state
    reach: Bool[Array, "B 1 G C 1"] | None  # the key is in the segment at the end of its chunk
    carry: Float[Array, "#B #H G+1 G+1"]  # 1 where a term of the state is still in a later state

    @classmethod
    def of_block(cls, run_BT, n, chunk, block, dtype):
        pairs = jnp.tril(jnp.ones((chunk, chunk), bool))
        carry = jnp.tril(jnp.ones((block // chunk + 1,) * 2, dtype))
        if run_BT is None:
            return cls(pairs, None, None, carry[None, None])
        run_BGC = lax.dynamic_slice_in_dim(run_BT, n * block, block, axis=1)
        run_BGC = run_BGC.reshape(-1, block // chunk, chunk)
        before_B = run_BT[:, jnp.maximum(n * block - 1, 0)]
        ends_BG = jnp.concatenate([before_B[:, None], run_BGC[..., -1]], axis=1)
        pairs = pairs & (run_BGC[..., :, None] == run_BGC[..., None, :])
        read = run_BGC == ends_BG[:, :-1, None]
        reach = run_BGC == ends_BG[:, 1:, None]
        carry = carry * (ends_BG[:, :, None] == ends_BG[:, None, :])
        return cls(
            pairs[:, None], read[:, None, ..., None], reach[:, None, ..., None], carry[:, None]
        )

    def within(self, weights: Array) -> Array:
        return jnp.where(self.pairs, weights, 0)

    def reads(self, queries: Array) -> Array:
        return queries if self.read is None else jnp.where(self.read, queries, 0)

    def reaches(self, keys: Array) -> Array:
        return keys if self.reach is None else jnp.where(self.reach, keys, 0)
