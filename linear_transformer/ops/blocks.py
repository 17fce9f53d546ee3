"""Shared parts of the chunk forms: blocks of chunks, heads first, and masks of packed segments.

Time is cut into blocks of G chunks of C tokens, and one loop runs over the blocks, so that every
temporary has the size of a block and stays in the processor cache.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from linear_transformer.types import State


def read(x_BTHK: Array, n: Int[Array, ""], chunk: int, block: int) -> Shaped[Array, "B H G C K"]:
    """Slices block n and cuts it into its chunks, heads first."""
    batch, _, heads, width = x_BTHK.shape
    x = lax.dynamic_slice_in_dim(x_BTHK, n * block, block, axis=1)
    return x.reshape(batch, block // chunk, chunk, heads, width).transpose(0, 3, 1, 2, 4)


def write(x_BTHK: Array, block_BHGCK: Array, n: Int[Array, ""]) -> Array:
    batch, heads, chunks, chunk, width = block_BHGCK.shape
    rows = block_BHGCK.transpose(0, 2, 3, 1, 4).reshape(batch, chunks * chunk, heads, width)
    start = n * chunks * chunk
    return lax.dynamic_update_slice_in_dim(x_BTHK, rows.astype(x_BTHK.dtype), start, axis=1)


def matmul(a: Array, b: Array, narrow: jnp.dtype, dtype: jnp.dtype) -> Array:
    """Computes a @ b with operands rounded to `narrow` and sums in `dtype`.

    `narrow` is the result type of all token inputs of an operation: bfloat16 if all of them are
    bfloat16, else float32 or wider.  A rounded operand enters a sum of an additive or decaying
    recurrence once and is never multiplied by itself from token to token, so the error of an output
    stays near 2^-8 of its terms.
    """
    return jnp.matmul(a.astype(narrow), b.astype(narrow), preferred_element_type=dtype)


# The products below have one query or many.  Of the two operands, XLA may copy one to another
# layout; with one query, that must not be the keys or the values.


def pair_products(
    q_BTHK: Float[Array, "B T H K"], k_BSHK: Float[Array, "B S H K"], dtype: jnp.dtype
) -> Float[Array, "B H T S"]:
    """Computes q_t.k_s, with sums in `dtype`."""
    if q_BTHK.shape[1] > 1:
        return jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=dtype)
    return jnp.einsum("bshk,bthk->bhst", k_BSHK, q_BTHK, preferred_element_type=dtype).mT


def weighted_sum(
    weights_BHTS: Float[Array, "B H T S"], v_BSHV: Float[Array, "B S H V"], dtype: jnp.dtype
) -> Float[Array, "B T H V"]:
    """Computes sum_s w_ts v_s, with sums in `dtype`."""
    if weights_BHTS.shape[2] > 1:
        return jnp.einsum("bhts,bshv->bthv", weights_BHTS, v_BSHV, preferred_element_type=dtype)
    o_BHTV = jnp.einsum("bhts,bshv->bhtv", weights_BHTS, v_BSHV, preferred_element_type=dtype)
    return o_BHTV.swapaxes(1, 2)


class Masks(NamedTuple):
    """Masks of the terms that a block keeps; None keeps all of them.

    Every mask is a `where`: a product with 0 would spread a NaN from one segment to all.
    """

    pairs: Bool[Array, "#B 1 #G C C"]  # key j of the chunk is visible to query i
    read: Bool[Array, "B 1 G C 1"] | None  # the query is in the segment of the entering state
    reach: Bool[Array, "B 1 G C 1"] | None  # the key is in the segment at the end of its chunk
    through: Bool[Array, "B 1 G 1 1"] | None  # no segment starts in the chunk

    @classmethod
    def of_block(cls, run_BT, n, chunk, block):
        pairs = jnp.tril(jnp.ones((chunk, chunk), bool))
        if run_BT is None:
            return cls(pairs, None, None, None)
        run_BGC = lax.dynamic_slice_in_dim(run_BT, n * block, block, axis=1)
        run_BGC = run_BGC.reshape(-1, block // chunk, chunk)
        before_B = run_BT[:, jnp.maximum(n * block - 1, 0)]
        ends_BG = jnp.concatenate([before_B[:, None], run_BGC[..., -1]], axis=1)
        pairs = pairs & (run_BGC[..., :, None] == run_BGC[..., None, :])
        read = run_BGC == ends_BG[:, :-1, None]
        reach = run_BGC == ends_BG[:, 1:, None]
        through = ends_BG[:, :-1] == ends_BG[:, 1:]
        return cls(
            pairs[:, None],
            read[:, None, ..., None],
            reach[:, None, ..., None],
            through[:, None, :, None, None],
        )

    def within(self, weights: Array) -> Array:
        """Keeps the weights of visible pairs."""
        return jnp.where(self.pairs, weights, 0)

    def reads(self, rows: Array) -> Array:
        """Keeps the rows of tokens that see the state entering their chunk."""
        return rows if self.read is None else jnp.where(self.read, rows, 0)

    def reaches(self, rows: Array) -> Array:
        """Keeps the rows of tokens that the state leaving their chunk contains."""
        return rows if self.reach is None else jnp.where(self.reach, rows, 0)

    def carried(self, x: Float[Array, "B H _ _"], g: int) -> Array:
        """Keeps a state entering chunk g, or a gradient leaving it, if no segment starts in g."""
        return x if self.through is None else jnp.where(self.through[:, :, g], x, 0)


def needs_gradient(do: Array, dstate: Array, masks: Masks) -> list[Bool[Array, "B H 1 1"]]:
    """Returns for each chunk whether anything that depends on its entering state has a gradient.

    If nothing has one, the gradient of the entering state must be set to 0 by `where`: products of
    0 with a non-finite token are NaN and would reach the earlier chunks.

    Args:
      do: (B, H, G, C, V), gradients of the outputs of a block.
      dstate: (B, H, K, V), gradient of the state that leaves the block.
    """
    outputs = jnp.any(masks.reads(do) != 0, axis=(-2, -1), keepdims=True)
    later = jnp.any(dstate != 0, axis=(-2, -1), keepdims=True)
    chunks = []
    for g in reversed(range(do.shape[2])):
        through = later if masks.through is None else later & masks.through[:, :, g]
        later = outputs[:, :, g] | through
        chunks.append(later)
    return chunks[::-1]


def entering_states(
    k: Array, v: Array, state: State, masks: Masks, narrow: jnp.dtype, total: Array | None = None
) -> tuple[Array, State]:
    """States S' = total S + k^T v that enter the chunks of a block, and the state that leaves it.

    Args:
      k: (B, H, G, C, K), keys with their decay to the end of the chunk.
      v: (B, H, G, C, V), values.
      total: (B, H, G, #K, #V), decay of a state over each chunk; None means no decay.
    """
    updates = matmul(masks.reaches(k).mT, masks.reaches(v), narrow, state.dtype)
    states = [state]
    for g in range(updates.shape[2]):
        before = states[-1] if total is None else total[:, :, g] * states[-1]
        states.append(masks.carried(before, g) + updates[:, :, g])
    return jnp.stack(states[:-1], axis=2), states[-1]


def leaving_gradients(
    q: Array, do: Array, dstate: State, masks: Masks, narrow: jnp.dtype, total: Array | None = None
) -> tuple[Array, State]:
    """Gradients of the states that leave the chunks, and of the state that enters the block.

    Args:
      q: (B, H, G, C, K), queries with the decay from the start of their chunk.
      do: (B, H, G, C, V), gradients of the outputs.
      dstate: gradient of the state that leaves the block.
      total: see `entering_states`.
    """
    reads = matmul(masks.reads(q).mT, masks.reads(do), narrow, dstate.dtype)
    gradients, need_gradient = [dstate], needs_gradient(do, dstate, masks)
    for g in reversed(range(reads.shape[2])):
        after = masks.carried(gradients[-1], g)
        after = after if total is None else total[:, :, g] * after
        gradients.append(jnp.where(need_gradient[g], after + reads[:, :, g], 0))
    return jnp.stack(gradients[-2::-1], axis=2), gradients[-1]
