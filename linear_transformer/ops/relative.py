"""Causal softmax attention over a window, with a learned vector for each distance.

Dai et al. 2019, Transformer-XL (arXiv:1901.02860), section 3.3:

    o_t = sum_s p_ts v_s,   p_ts = softmax over s of ((q_t + u).k_s + (q_t + b).r_{t-s}) / sqrt(K)

over the w keys t - w < s <= t.  A factor m_{t-s} of exp(score), such as a soft mask of the
distance (Sukhbaatar et al. 2019, arXiv:1905.07799), is a bias log m_{t-s} of the score.  Time and
memory are O(T w): blocks of w queries attend to the 2 w - 1 keys that they may see, and fewer than
w queries are one block.

A non-finite key or value makes the outputs of the queries that see it NaN, and changes no other
output and no gradient of another output.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.block_local import attend
from linear_transformer.ops.non_finite import finite_tokens, keep
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Keys, Outputs, Queries, Values


def relative_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    distances_WHK: Float[Array, "W H K"],
    *,
    content_bias_HK: Float[Array, "H K"] | None = None,
    position_bias_HK: Float[Array, "H K"] | None = None,
    log_factors_HW: Float[Array, "H W"] | None = None,
    segment_ids_BS: Int[Array, "B S"] | None = None,
    key_mask_BS: KeyMask | None = None,
) -> Outputs:
    """Computes the attention of T tokens, the last of S; a query that sees no key gets 0.

    Args:
      q_BTHK: queries.
      k_BSHK, v_BSHV: keys and values of the w - 1 tokens before the queries and of their own, S = T
        + w - 1; or S = T, and no token is before.
      distances_WHK: r_d for the distances d from 0 to w - 1.
      content_bias_HK, position_bias_HK: u and b; None is 0.
      log_factors_HW: log m_d for the distances d; -inf drops a distance, but not a NaN in it.  None
        is 0.  At distance 0 it must be finite.
      segment_ids_BS: packed segments, runs of equal ids; each token sees only its own segment.  For
        S > T a token sees all tokens of its id: number the runs (`segments.segment_index`).
      key_mask_BS: False drops the key exactly, even if it is NaN.

    Returns:
      o_BTHV, in the dtype of v.

    Raises:
      ValueError: an argument has a wrong type or shape.
    """
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BSHK=k_BSHK, v_BSHV=v_BSHV)
    sizes = checks.arrays(
        sizes,
        distances_WHK=distances_WHK,
        content_bias_HK=(content_bias_HK, "HK"),
        position_bias_HK=(position_bias_HK, "HK"),
        log_factors_HW=(log_factors_HW, "HW"),
    )
    checks.tokens(sizes, segment_ids_BS=segment_ids_BS, key_mask_BS=key_mask_BS)
    batch, time, keys, window = (sizes[axis] for axis in "BTSW")
    before = window - 1
    if keys not in (time, time + before):
        raise ValueError(f"{time} queries and {keys} keys; keys must be {time} or {time + before}")
    if 0 in (batch, time):
        return jnp.zeros((batch, time, *v_BSHV.shape[2:]), v_BSHV.dtype)
    if keys == time:  # nothing is before the row; on a shard, the tokens of the shards before are
        run = None if segment_ids_BS is None else sequence_parallel.segment_index(segment_ids_BS)
        exist = jnp.ones((batch, time), bool) if key_mask_BS is None else key_mask_BS
        k_BSHK, v_BSHV, key_mask_BS = (
            sequence_parallel.halo(x, before=before) for x in (k_BSHK, v_BSHV, exist)
        )
        run_BS = None if run is None else sequence_parallel.halo(run, before=before)
    else:
        run_BS = segment_ids_BS

    block = min(time, window)
    blocks = -(-time // block)
    behind = blocks * block - time

    def queries(x_BT: Array) -> Array:
        """Returns blocks (B G, Q, ...) of Q queries."""
        x = jnp.pad(x_BT, ((0, 0), (0, behind), *[(0, 0)] * (x_BT.ndim - 2)))
        return x.reshape(batch * blocks, block, *x.shape[2:])

    def in_reach(x_BS: Array) -> Array:
        """Returns the tokens that each block may see, (B G, Q + W - 1, ...)."""
        if blocks == 1:
            return x_BS
        x = jnp.pad(x_BS, ((0, 0), (0, behind + 1), *[(0, 0)] * (x_BS.ndim - 2)))
        x = x.reshape(batch, blocks + 1, window, *x.shape[2:])
        x = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)[:, :, :-1]
        return x.reshape(batch * blocks, 2 * window - 1, *x.shape[3:])

    dtype = accumulation_dtype(q_BTHK, k_BSHK, v_BSHV)
    q = queries(q_BTHK)
    content_bias, position_bias = (
        # Broadcast before it is rounded: its gradient is a sum in fp32.
        jnp.zeros((), q.dtype)
        if x is None
        else jnp.broadcast_to(x.astype(dtype), q.shape).astype(q.dtype)
        for x in (content_bias_HK, position_bias_HK)
    )
    by_position = keep(finite_tokens(q), q) + position_bias
    bias = jnp.einsum(
        "bthk,whk->bhtw", by_position, distances_WHK[::-1], preferred_element_type=dtype
    )
    if log_factors_HW is not None:  # `attend` multiplies the bias by K**-0.5
        bias += q.shape[-1] ** 0.5 * log_factors_HW[:, None, ::-1].astype(dtype)
    place = jnp.arange(block + window - 1) - jnp.arange(block)[:, None]
    visible = ((place >= 0) & (place < window))[None]
    if key_mask_BS is not None:
        visible = visible & in_reach(key_mask_BS)[:, None]
    if run_BS is not None:
        visible &= queries(run_BS[:, before:])[:, :, None] == in_reach(run_BS)[:, None]
    o = attend(
        q + content_bias,
        in_reach(k_BSHK),
        in_reach(v_BSHV),
        visible,
        scores="softmax",
        bias_BHTS=shifted(bias),
    )
    return o.reshape(batch, blocks * block, *o.shape[2:])[:, :time]


def shifted(x_BHTW: Float[Array, "B H T W"]) -> Float[Array, "B H T S"]:
    """Moves row t of each matrix right by t places, S = T + W - 1; zeros elsewhere."""
    *rows, time, width = x_BHTW.shape
    padded = jnp.pad(x_BHTW, (*[(0, 0)] * len(rows), (0, 0), (0, time)))
    flat = padded.reshape(*rows, -1)[..., : time * (time + width - 1)]
    return flat.reshape(*rows, time, time + width - 1)
