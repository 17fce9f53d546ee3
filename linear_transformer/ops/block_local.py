"""Attention within non-overlapping blocks of the sequence: DiagAttention.

Qin et al. 2022, "The Devil in Linear Transformer" (arXiv:2210.10340), section 4.2.  Token t is in
block t // w, and

    o_t = sum_s f(a q_t.k_s) v_s     over the keys s of its block (up to t if causal),

where f is the softmax over these keys, or a ReLU without a normaliser (Zhang et al. 2021, ReLA),
which needs a norm after it.  Time and memory are O(T w), linear in T.

Blocks are cut by the place in the sequence, not by segment: a segment may begin in the middle of a
block, and a query sees only the keys of its own segment in the block.

A non-finite key or value makes the outputs of the queries that see it NaN, and changes no other
output and no gradient of another output.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.blocks import pair_products, weighted_sum
from linear_transformer.ops.non_finite import contained, set_nan
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Keys, Outputs, Queries, SegmentIds, Values

Direction = Literal["causal", "bidirectional"]
Scores = Literal["softmax", "relu"]


def block_local_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    *,
    block_size: int,
    scores: str = "softmax",
    scale: float | None = None,
    direction: str = "causal",
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BT: KeyMask | None = None,
) -> Outputs:
    """Computes attention within the blocks; a query that sees no key gets 0.

    Args:
      q_BTHK, k_BTHK, v_BTHV: queries, keys, values; V may differ from K.
      block_size: w, the tokens of a block; T need not be a multiple.
      scores: "softmax" or "relu".
      scale: factor on the scores, positive; K**-0.5 if None.
      direction: "causal" or "bidirectional", within the block.
      segment_ids_BT: packed segments, runs of equal ids; each token sees only its own segment.
      key_mask_BT: False drops the key exactly, even if it is NaN.

    Returns:
      o_BTHV, in the dtype of v.  Matrix products have operands in the result type of q, k and v;
      scores and sums are fp32 (fp64 for fp64 inputs).

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    checks.choice("direction", direction, get_args(Direction))
    checks.choice("scores", scores, get_args(Scores))
    checks.counts(block_size=block_size)
    checks.positive(scale=scale)
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BTHK=k_BTHK, v_BTHV=v_BTHV)
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT, key_mask_BT=key_mask_BT)
    if 0 in (sizes["B"], sizes["T"]):
        return jnp.zeros_like(v_BTHV)
    options = {"block_size": block_size, "scores": scores, "scale": scale, "direction": direction}
    arrays = (q_BTHK, k_BTHK, v_BTHV, segment_ids_BT, key_mask_BT)
    if sequence_parallel.shards() > 1 and q_BTHK.shape[1] % block_size:
        return _sharded(arrays, **options)
    return _in_blocks(*arrays, **options)


def _sharded(arrays, *, block_size, direction, **options):
    """Computes this shard's outputs where blocks lie across the borders of shards."""
    time = arrays[0].shape[1]
    bidirectional = direction == "bidirectional"
    if bidirectional and arrays[-1] is None:
        # Zeros follow the end of the sequence, so this mask is False there.
        arrays = (*arrays[:-1], jnp.ones(arrays[0].shape[:2], bool))
    arrays, place = sequence_parallel.blocks(arrays, block_size, after=bidirectional)
    o = _in_blocks(*arrays, block_size=block_size, direction=direction, **options)
    return lax.dynamic_slice_in_dim(o, place, time, axis=1)


def _in_blocks(
    q_BTHK, k_BTHK, v_BTHV, segment_ids_BT, key_mask_BT, *, block_size, scores, scale, direction
):
    batch, time = q_BTHK.shape[:2]
    blocks = -(-time // block_size)

    def cut(x_BT):
        padding = [(0, 0), (0, blocks * block_size - time)] + [(0, 0)] * (x_BT.ndim - 2)
        return jnp.pad(x_BT, padding).reshape(batch * blocks, block_size, *x_BT.shape[2:])

    visible = jnp.ones((1, block_size, block_size), bool)
    if direction == "causal":  # hides the padding after the end too
        visible = jnp.tril(visible)
    elif key_mask_BT is None and time % block_size:
        key_mask_BT = jnp.ones((batch, time), bool)
    if key_mask_BT is not None:
        visible = visible & cut(key_mask_BT)[:, None, :]
    if segment_ids_BT is not None:
        run = cut(segments.segment_index(segment_ids_BT))
        visible = visible & (run[:, :, None] == run[:, None, :])
    q, k, v = (cut(x) for x in (q_BTHK, k_BTHK, v_BTHV))
    o = attend(q, k, v, visible, scores=scores, scale=scale)
    return o.reshape(batch, blocks * block_size, *o.shape[2:])[:, :time]


def attend(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    visible_BTS: Bool[Array, "#B T S"],
    *,
    scores: str,
    scale: float | None = None,
    bias_BHTS: Float[Array, "#B H T S"] | None = None,
) -> Outputs:
    """Attends within one block: `sum_s f(a (q_t.k_s + bias_ts)) v_s` over the visible keys."""
    dtype = accumulation_dtype(q_BTHK, k_BSHK, v_BSHV)
    narrow = jnp.result_type(q_BTHK, k_BSHK, v_BSHV)
    scale = float(q_BTHK.shape[-1] ** -0.5) if scale is None else scale
    q, k, v, affected_BT = contained(q_BTHK, k_BSHK, v_BSHV, visible_BTS)
    scores_BHTS = pair_products(q, k, dtype)
    if bias_BHTS is not None:
        scores_BHTS = scores_BHTS + bias_BHTS
    scores_BHTS = scores_BHTS * scale
    visible = visible_BTS[:, None]
    if scores == "relu":
        weights = jnp.where(visible, jax.nn.relu(scores_BHTS), 0)
    else:
        # The least number, not -inf: the softmax of a query without keys must not be NaN.
        weights = jax.nn.softmax(jnp.where(visible, scores_BHTS, jnp.finfo(dtype).min), axis=-1)
        weights = jnp.where(visible, weights, 0)
    weights = weights.astype(narrow)
    o_BTHV = weighted_sum(weights, v, dtype)
    return set_nan(affected_BT, o_BTHV).astype(v_BSHV.dtype)
