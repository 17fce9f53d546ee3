"""Softmax attention of blocks of queries to a fixed list of blocks of keys.

Longformer (Beltagy et al. 2020, arXiv:2004.05150) and BigBird (Zaheer et al. 2020,
arXiv:2007.14062).  The sequence is cut into blocks of b tokens, by the place in the row.  A query
sees the keys of the listed blocks of its block, only near keys if there is a `reach`, and the
first `num_global` tokens of the row, which in turn see all tokens (`with_global_queries`):

    o_t = sum_s p_ts v_s,    p_ts = softmax over the visible s of a q_t.k_s

Time and memory are O(T n b) for lists of n blocks, linear in T.

A non-finite key or value makes the outputs of the queries that see it NaN, and changes no other
output and no gradient of another output.  A sequence over several devices is computed as a whole on
each of them.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.block_local import attend
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.types import Keys, Outputs, Queries, SegmentIds, Values

Blocks = Int[np.ndarray, "#H G N"]


def block_sparse_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    blocks_HGN: Blocks,
    *,
    block_size: int,
    reach: int | None = None,
    num_global: int = 0,
    segment_ids_BT: SegmentIds | None = None,
) -> Outputs:
    """Computes bidirectional attention of all tokens; a query that sees no key gets 0.

    Args:
      q_BTHK, k_BTHK, v_BTHV: queries, keys, values; V may differ from K.
      blocks_HGN: for each head, or for all together, and for each of the G blocks of queries the
        indices of N blocks of keys; negative is none.  An index that a list has twice counts once.
      block_size: tokens b of a block; G b is T or more.
      reach: largest distance of a query and a key that is not global; None is no bound.
      num_global: first tokens of the row, which all tokens see; b or fewer.
      segment_ids_BT: packed segments, runs of equal ids; each token sees only its own segment.

    Returns:
      o_BTHV, in the dtype of v.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BTHK=k_BTHK, v_BTHV=v_BTHV)
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT)
    checks.counts(block_size=block_size)
    checks.counts(0, reach=reach, num_global=num_global)
    time = sizes["T"] * sequence_parallel.shards()
    if num_global > block_size:
        raise ValueError(f"num_global is {num_global}; it must be 0 to block_size ({block_size})")
    heads, blocks = sizes["H"], -(-time // block_size)
    shared = getattr(blocks_HGN, "shape", ())[:1] == (1,)
    checks.required(blocks_HGN=blocks_HGN)
    checks.tokens({"H": 1 if shared else heads, "G": blocks}, blocks_HGN=blocks_HGN)
    if 0 in (sizes["B"], time):
        return jnp.zeros_like(v_BTHV)
    if num_global:
        blocks_HGN = np.pad(blocks_HGN, ((0, 0), (0, 0), (1, 0)))  # block 0 has the global tokens
    lists = _unique(blocks_HGN)

    def on_row(q, k, v, segment_ids):
        run = None if segment_ids is None else segments.segment_index(segment_ids)
        return _in_blocks(q, k, v, run, lists, block_size, reach, num_global)

    return sequence_parallel.on_whole_rows(on_row, q_BTHK, k_BTHK, v_BTHV, segment_ids_BT)


def with_global_queries(
    o_BTHV: Outputs,
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    *,
    num_global: int,
    segment_ids_BT: SegmentIds | None = None,
) -> Outputs:
    """Replaces the outputs of the first `num_global` tokens, which see all tokens of their segment.

    Args:
      o_BTHV: outputs of `block_sparse_attention`.
      q_BTHK, k_BTHK, v_BTHV: queries, keys and values of the global tokens' attention.
      num_global: number of global tokens in the row.
      segment_ids_BT: packed segments, runs of equal ids.
    """

    def on_row(o, q, k, v, segment_ids):
        run = None if segment_ids is None else segments.segment_index(segment_ids)
        o_first = softmax_attention(
            q[:, :num_global],
            k,
            v,
            direction="bidirectional",
            segment_ids_BT=None if run is None else run[:, :num_global],
            key_segment_ids_BS=run,
        )
        return o.at[:, :num_global].set(o_first.astype(o.dtype))

    arrays = (o_BTHV, q_BTHK, k_BTHK, v_BTHV, segment_ids_BT)
    return sequence_parallel.on_whole_rows(on_row, *arrays)


def neighbours(num_blocks: int, distance: int) -> Blocks:
    """Lists the blocks at most `distance` from each block, the same for all heads."""
    lists = np.arange(num_blocks)[:, None] + np.arange(-distance, distance + 1)
    return np.where(lists < num_blocks, lists, -1)[None]


def _unique(blocks_HGN: Blocks) -> Blocks:
    """Replaces what a list has already by -1."""
    equal = blocks_HGN[..., :, None] == blocks_HGN[..., None, :]
    return np.where(np.any(np.tril(equal, -1), axis=-1), -1, blocks_HGN)


def _in_blocks(q_BTHK, k_BTHK, v_BTHV, run_BT, lists_HGN, block_size, reach, num_global):
    batch, time, heads = q_BTHK.shape[:3]
    blocks, length = lists_HGN.shape[1:]

    def cut(x_BTHX: Array) -> Array:
        """Returns blocks (B, H, G, C, X)."""
        x = jnp.pad(x_BTHX, ((0, 0), (0, blocks * block_size - time), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, blocks, block_size, -1, x.shape[3]), 3, 1)

    def listed(x_BTHX: Array) -> Array:
        """Returns the tokens of the listed blocks, (B, H, G, N C, X)."""
        x, lists = cut(x_BTHX), np.maximum(lists_HGN, 0)
        if len(lists) == 1 or x.shape[1] == 1:
            x = jnp.concatenate([x[:, :, rows] for rows in lists], axis=1)
        else:
            x = x[:, np.arange(heads)[:, None, None], lists]
        return x.reshape(*x.shape[:3], length * block_size, -1)

    places_GC = np.arange(blocks * block_size).reshape(blocks, block_size)
    keys_HGxS = places_GC[lists_HGN].reshape(*lists_HGN.shape[:2], 1, -1)
    exist = np.repeat(lists_HGN >= 0, block_size, axis=-1)[:, :, None] & (keys_HGxS < time)
    visible = jnp.asarray(exist)
    if reach is not None:
        distance = jnp.abs(places_GC[..., None] - jnp.asarray(keys_HGxS))
        visible &= (distance <= reach) | (keys_HGxS < num_global)
    if run_BT is not None:
        run_BTxx = run_BT[..., None, None]
        visible = visible & (cut(run_BTxx) == listed(run_BTxx).mT)
    shape = (batch, heads, blocks, block_size, length * block_size)
    visible = jnp.broadcast_to(visible, shape).reshape(-1, *shape[3:])

    def fold(x: Array) -> Array:
        return x.reshape(-1, *x.shape[3:])[:, :, None]

    q, k, v = fold(cut(q_BTHK)), fold(listed(k_BTHK)), fold(listed(v_BTHV))
    o = attend(q, k, v, visible, scores="softmax")
    o = jnp.moveaxis(o.reshape(batch, heads, blocks, block_size, -1), 1, 3)
    return o.reshape(batch, blocks * block_size, heads, -1)[:, :time]
