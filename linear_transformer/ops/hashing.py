"""LSH attention: a query attends to the keys in its own bucket.

Kitaev, Kaiser and Levskaya 2020, "Reformer: The Efficient Transformer", section 2.  Keys are
normalised queries: k = q / |q|.  In each of R rounds, with a random matrix R_r,

    h(x) = argmax [x R_r; -x R_r]                                             (angular LSH)
    P_i = {j : h(q_j) = h(q_i), j <= i, j near i in the order of (bucket, position)}
    o_i^r = sum_{j in P_i} exp(q_i.k_j / sqrt(K) - z_i^r) v_j,  z_i^r = log sum_{j in P_i} exp(...)

and o_i = sum_r exp(z_i^r) o_i^r / sum_r exp(z_i^r).  A token sees itself only if it sees no other
token.  A key that is found in several rounds counts in each of them.

A non-finite token makes the outputs of the tokens that see it NaN, and changes no other output and
no gradient of another output; such a token is hashed like a token of zeros.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.blocks import pair_products, weighted_sum
from linear_transformer.ops.non_finite import finite_tokens, keep
from linear_transformer.ops.normalizer import unit_length
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Outputs, Positions, Queries, SegmentIds

CHUNKINGS = ("window", "sorted")
DIRECTIONS = ("causal", "bidirectional")
# Subtracted from the score of a token with itself, as in the authors' code.
SELF_PENALTY = 1e5


def lsh_attention(
    q_BTHK: Queries,
    v_BTHV: Float[Array, "B T H V"],
    rotations_RKE: Float[Array, "R K E"],
    *,
    chunk_size: int,
    chunking: str = "window",
    direction: str = "causal",
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
) -> Outputs:
    """Computes LSH attention in time O(R T (log T + C)) and memory O(R T + T C).

    Args:
      q_BTHK: queries; normalised, they are the keys.
      v_BTHV: values.
      rotations_RKE: one random matrix for each round; 2 E buckets.
      chunk_size: C, the tokens of a chunk.
      chunking: keys of the bucket that count as near.  "sorted": tokens are sorted by bucket and
        position and cut into chunks; a query sees its own chunk and the one before, as published.
        Chunk borders then depend on all tokens of the sequence, also later ones and other segments
        (on their hashes, never their values).  "window": the C keys of the bucket before the query;
        this depends on the tokens up to the query only, so decoding and packing are exact, up to
        the order of the sums: the places of tokens in chunks depend on all hashes.
      direction: "causal", or "bidirectional" ("sorted" only).
      segment_ids_BT: packed segments, runs of equal ids; each token sees only its own segment.
      key_mask_BS: False drops a token, even if it is NaN; its own output is 0.

    Returns:
      o_BTHV, in the dtype of v.  Matrix products have operands in the result type of q and v; sums
      are fp32 (fp64 for fp64 inputs).

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    checks.choice("chunking", chunking, CHUNKINGS)
    checks.choice("direction", direction, DIRECTIONS)
    checks.counts(chunk_size=chunk_size)
    sizes = checks.arrays(q_BTHK=q_BTHK, v_BTHV=v_BTHV, rotations_RKE=rotations_RKE)
    checks.tokens(sizes | {"S": sizes["T"]}, segment_ids_BT=segment_ids_BT, key_mask_BS=key_mask_BS)
    if chunking == "window" and direction != "causal":
        raise ValueError("chunking='window' looks back only; bidirectional needs 'sorted'")
    if 0 in (sizes["B"], sizes["T"]):
        return jnp.zeros_like(v_BTHV)

    def whole(q, v, segment_ids, key_mask):
        return _attend(q, v, rotations_RKE, segment_ids, key_mask, chunk_size, chunking, direction)

    # A bucket may hold tokens from anywhere in the sequence.
    arrays = (q_BTHK, v_BTHV, segment_ids_BT, key_mask_BS)
    return sequence_parallel.on_whole_rows(whole, *arrays)


def _attend(
    q_BTHK, v_BTHV, rotations_RKE, segment_ids_BT, key_mask_BS, chunk_size, chunking, direction
):
    (B, T), R = q_BTHK.shape[:2], rotations_RKE.shape[0]
    run_BT = jnp.zeros((B, T), jnp.int32)
    if segment_ids_BT is not None:
        run_BT = segments.segment_index(segment_ids_BT)
    dtype, narrow = v_BTHV.dtype, jnp.result_type(q_BTHK, v_BTHV)
    finite_BT = finite_tokens(q_BTHK, v_BTHV)
    q_BTHK, v_BTHV = (keep(finite_BT, x.astype(narrow)) for x in (q_BTHK, v_BTHV))
    k_BTHK = unit_length(q_BTHK).astype(narrow)
    chunk = min(chunk_size, T)

    @jax.checkpoint
    def attend(rotations_KE):
        # One integer per pair of segment and bucket; only tokens with equal integers meet.
        groups = 2 * rotations_KE.shape[1] + 1
        bucket_BTH = buckets(q_BTHK, rotations_KE)
        if key_mask_BS is not None:
            bucket_BTH = jnp.where(key_mask_BS[:, :, None], bucket_BTH, groups - 1)
        group_BTH = run_BT[..., None] * groups + bucket_BTH
        order_BTH = jnp.argsort(group_BTH, axis=1, stable=True)

        def in_order(x_BTHX):
            return jnp.take_along_axis(x_BTHX, order_BTH[..., None], axis=1)

        lost_BTHx = jnp.broadcast_to(~finite_BT[..., None, None], (*group_BTH.shape, 1))
        arrays = (q_BTHK, k_BTHK, v_BTHV, group_BTH[..., None], lost_BTHx)
        arrays = (in_order(x) for x in arrays)
        o, *rest = _near(*arrays, order_BTH[..., None], chunk, chunking, direction)
        back_BTH = jnp.argsort(order_BTH, axis=1)
        o_BTHV = jnp.take_along_axis(o, back_BTH[..., None], axis=1)
        return o_BTHV, *(jnp.take_along_axis(x, back_BTH, axis=1) for x in rest)

    o_RBTHV, lse_RBTH, affected_RBTH = lax.map(attend, rotations_RKE)
    weights_RBTH = jax.nn.softmax(lse_RBTH, axis=0) if R > 1 else jnp.ones_like(lse_RBTH)
    o_BTHV = jnp.einsum("rbth,rbthv->bthv", weights_RBTH, o_RBTHV)
    o_BTHV = jnp.where(jnp.any(affected_RBTH, axis=0)[..., None], jnp.nan, o_BTHV)
    if key_mask_BS is not None:
        o_BTHV = keep(key_mask_BS, o_BTHV)
    return o_BTHV.astype(dtype)


def lsh_attention_to_cache(
    q_B1HK: Queries,
    q_BSHK: Float[Array, "B S H K"],
    v_BSHV: Float[Array, "B S H V"],
    buckets_BSHR: Int[Array, "B S H R"],
    *,
    chunk_size: int,
    segment_ids_BT: SegmentIds,
    key_segment_ids_BS: Int[Array, "B S"],
    query_positions_BT: Positions,
    key_positions_BS: Int[Array, "B S"],
) -> Outputs:
    """Computes the output of one token with chunking "window", from buckets computed before.

    Args:
      q_B1HK: query of the token.
      q_BSHK, v_BSHV: queries and values of the tokens of a ring, in which positions ascend up to
        the slot of the token; after it they ascend too, and all are lower.
      buckets_BSHR: `buckets` of the queries of the ring, in each round.
      chunk_size: see `lsh_attention`.
      segment_ids_BT, key_segment_ids_BS: the token sees the tokens of its own segment.
      query_positions_BT, key_positions_BS: positions; -1 for an empty slot.

    Returns:
      o_B1HV, in the dtype of v.
    """
    dtype, narrow = accumulation_dtype(q_BSHK, v_BSHV), jnp.result_type(q_BSHK, v_BSHV)
    own_BS = key_positions_BS == query_positions_BT
    own = own_BS[:, :, None, None]
    bucket_BxHR = jnp.sum(jnp.where(own, buckets_BSHR, 0), axis=1, keepdims=True)
    held_BS = (key_segment_ids_BS == segment_ids_BT) & (key_positions_BS >= 0)
    same_BSHR = held_BS[:, :, None, None] & (buckets_BSHR == bucket_BxHR)
    count = jnp.cumsum(same_BSHR, axis=1, dtype=jnp.int32)
    at_own = jnp.sum(jnp.where(own, count, 0), axis=1, keepdims=True)
    wrapped = jnp.cumsum(own_BS, axis=1)[:, :, None, None] - own > 0  # slots after the token's
    newer = at_own - count + jnp.where(wrapped, count[:, -1:], 0)
    rounds_BSH = jnp.sum(same_BSHR & (newer <= chunk_size), axis=-1)
    seen = (rounds_BSH > 0)[..., None]
    k_BSHK = jnp.where(seen, unit_length(q_BSHK), 0).astype(narrow)
    scores = pair_products(q_B1HK.astype(narrow), k_BSHK, dtype) * q_BSHK.shape[-1] ** -0.5
    scores -= jnp.where(own_BS, SELF_PENALTY, 0).astype(dtype)[:, None, None]
    rounds_BHxS = rounds_BSH.transpose(0, 2, 1)[:, :, None]
    log_rounds = jnp.where(rounds_BHxS > 0, jnp.log(rounds_BHxS), jnp.finfo(dtype).min)
    weights_BHxS = jax.nn.softmax(scores + log_rounds, axis=-1).astype(v_BSHV.dtype)
    return weighted_sum(weights_BHxS, jnp.where(seen, v_BSHV, 0), dtype).astype(v_BSHV.dtype)


def buckets(x_BTHK: Queries, rotations_KE: Float[Array, "K E"]) -> Int[Array, "B T H"]:
    """Computes h(x) in full precision: near a tie a rounding error would change the bucket."""
    dtype = jnp.result_type(x_BTHK, rotations_KE)
    projected = jnp.einsum(
        "bthk,ke->bthe",
        x_BTHK.astype(dtype),
        rotations_KE.astype(dtype),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.argmax(jnp.concatenate([projected, -projected], axis=-1), axis=-1)


def buckets_of_rounds(
    x_BTHK: Queries, rotations_RKE: Float[Array, "R K E"]
) -> Int[Array, "B T H R"]:
    """Computes h(x) in each round."""
    return jnp.stack([buckets(x_BTHK, rotation) for rotation in rotations_RKE], axis=-1)


def _near(q, k, v, group, lost, place, chunk, chunking, direction):
    """Attends from sorted tokens to their own chunk and the chunk before.

    Returns outputs, log-sum-exps, and a mask of the tokens that see a non-finite token.
    """
    time, dtype = q.shape[1], accumulation_dtype(q, v)

    def chunks(x, fill=0):
        padding = ((0, 0), (0, -time % chunk), (0, 0), (0, 0))
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])

    def with_previous(x_BNCHX, fill=0):
        before = jnp.pad(x_BNCHX[:, :-1], ((0, 0), (1, 0), *[(0, 0)] * 3), constant_values=fill)
        return jnp.concatenate([before, x_BNCHX], axis=2)

    q = chunks(q)
    group, lost, place = chunks(group, -1), chunks(lost, False), chunks(place)
    scores = jnp.einsum(
        "bnchk,bndhk->bnhcd", q, with_previous(chunks(k)), preferred_element_type=dtype
    )
    scores *= q.shape[-1] ** -0.5
    group_q, place_q = (x.transpose(0, 1, 3, 2, 4) for x in (group, place))  # B N H C 1
    keys = (with_previous(group, -1), with_previous(lost, False), with_previous(place))
    group_k, lost_k, place_k = (x.transpose(0, 1, 3, 4, 2) for x in keys)  # B N H 1 D
    visible = (group_q == group_k) & (group_q >= 0)
    if direction == "causal":
        visible &= place_k <= place_q
    if chunking == "window":
        visible &= jnp.arange(2 * chunk) >= jnp.arange(chunk)[:, None]
    scores -= jnp.where(place_q == place_k, SELF_PENALTY, 0).astype(dtype)
    # Padding sees no key; a finite score keeps its gradients finite.
    scores = jnp.where(visible, scores, jnp.finfo(dtype).min)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
    o = jnp.einsum(
        "bnhcd,bndhv->bnchv", weights, with_previous(chunks(v)), preferred_element_type=dtype
    )
    affected = jnp.any(visible & lost_k, axis=-1)
    return (
        o.reshape(o.shape[0], -1, *o.shape[3:])[:, :time],
        *(x.swapaxes(2, 3).reshape(o.shape[0], -1, o.shape[3])[:, :time] for x in (lse, affected)),
    )
