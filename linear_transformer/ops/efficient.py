"""Efficient attention: E(Q, K, V) = rho_q(Q) (rho_k(K)^T V).

Shen, Zhang, Zhao, Yi and Li, 2021 (arXiv:1812.01243).  With softmax normalisation rho_q is a
softmax over the features of each query and rho_k a softmax over the positions, feature by feature;
with scaling normalisation both divide by the square root of the number n of positions, and the
result is exactly dot-product attention with weights q^T k / n.

The softmax over positions sees all of them.  Its causal form sees the positions up to the query:

    o_i = sum_f rho_q(q_i)_f G_if,    G_if = sum_{j <= i} exp(k_jf) v_j / z_if,
    z_if = sum_{j <= i} exp(k_jf)

so that G_i are the paper's global context vectors of the prefix, each feature has its own
normaliser, and the last output equals the last output of the bidirectional form.  (Another causal
form, in lucidrains/linear-attention-transformer, divides once, by rho_q(q_i)^T z_i: this is linear
attention with the feature maps softmax and exp, and lets features with large keys dominate.)

A non-finite token makes the outputs of the queries that see it NaN, and changes no other output and
no gradient of another output.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from linear_transformer.ops import checks, log_space, sequence_parallel
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.log_space import EMPTY, ScaledState
from linear_transformer.ops.non_finite import finite_tokens, keep, set_nan
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Keys, Outputs, Queries, SegmentIds, Values

NORMALIZATIONS = ("softmax", "scaling")


def efficient_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    *,
    direction: str = "causal",
    initial_state: ScaledState | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, ScaledState]:
    """Computes efficient attention with softmax normalisation, in time and memory linear in T.

    Every exponent is k_j - L with L = log z >= k_j, so keys of any magnitude are safe.

    Args:
      q_BTHK: queries, before their softmax over the features.
      k_BSHK: keys, before the softmax over positions.
      v_BSHV: values.
      direction: "causal" or "bidirectional" (all keys; S may differ from T: cross attention).
      initial_state: sums (B, H, K, V + 1) and log_scale (B, H, K) of the earlier tokens.
      segment_ids_BT: packed segments; each token sees only its own segment.
      key_mask_BS: False drops a key exactly, even if it is NaN; a query that sees no key gets 0.
      form, chunk_size: options of the causal recurrence, see `ops.decay.decayed_attention`.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the state: [G, 1] and log z of the last token.
      Matrix products have operands in the result type of q, k and v.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    options: dict[str, Any] = {
        "direction": direction,
        "segment_ids_BT": segment_ids_BT,
        "form": form,
        "chunk_size": chunk_size,
    }
    arrays = (q_BTHK, k_BSHK, v_BSHV)
    sizes = log_space.check(*arrays, initial_state, "BHK", key_mask_BS=key_mask_BS, **options)
    dtype, narrow = accumulation_dtype(*arrays), jnp.result_type(*arrays)
    log_sum, context = _contexts(initial_state, sizes, dtype)
    if 0 in (sizes["B"], sizes["T"]):
        if initial_state is None:
            initial_state = ScaledState(jnp.pad(context, _LAST_COLUMN), jnp.zeros_like(log_sum))
        return jnp.zeros((*q_BTHK.shape[:3], sizes["V"]), v_BSHV.dtype), initial_state
    # Non-finite tokens are dropped like masked keys; NaN is put into the outputs at the end.
    queries_BT, keys_BS = finite_tokens(q_BTHK), finite_tokens(k_BSHK, v_BSHV)
    lost_BS = ~keys_BS
    if key_mask_BS is not None:
        keys_BS, lost_BS = keys_BS & key_mask_BS, lost_BS & key_mask_BS
    held_B = finite_tokens(context[:, None], log_sum[:, None])[:, 0]
    affected_BT = log_space.seen(lost_BS, ~held_B, segment_ids_BT, direction)
    context = jnp.where(held_B[:, None, None, None], context, 0)
    log_sum = jnp.where(held_B[:, None, None], log_sum, EMPTY)
    weights_BTHK = jax.nn.softmax(keep(queries_BT, q_BTHK).astype(dtype), axis=-1).astype(narrow)
    keys = jnp.where(keys_BS[:, :, None, None], k_BSHK.astype(dtype), EMPTY)
    total = log_space.log_sum_seen(keys, log_sum, segment_ids_BT, direction)
    arrays = (weights_BTHK, keep(keys_BS, jnp.exp(keys - total)).astype(narrow))
    arrays = (*arrays, keep(keys_BS, v_BSHV))
    o, context = log_space.attend(*arrays, context, log_sum, total, **options)
    context = set_nan(affected_BT[:, -1:], context[:, None])[:, 0]
    state = ScaledState(jnp.pad(context, _LAST_COLUMN, constant_values=1), total[:, -1])
    return set_nan(affected_BT | ~queries_BT, o), state


_LAST_COLUMN = ((0, 0), (0, 0), (0, 0), (0, 1))


def scaled_efficient_attention(
    q_BTHK: Queries, k_BSHK: Keys, v_BSHV: Values, key_mask_BS: KeyMask | None = None
) -> Outputs:
    """Computes efficient attention with scaling normalisation, bidirectional or cross attention.

    Together rho_q and rho_k divide by the number of unmasked keys.

    Raises:
      ValueError: an argument has a wrong type or shape.
    """
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BSHK=k_BSHK, v_BSHV=v_BSHV)
    checks.tokens(sizes, key_mask_BS=key_mask_BS)
    n_B = _count(k_BSHK, key_mask_BS)
    o, _ = linear_attention(
        q_BTHK,
        k_BSHK,
        v_BSHV,
        direction="bidirectional",
        feature_map=None,
        normalize=False,
        key_mask_BS=key_mask_BS,
    )
    return (o / n_B).astype(v_BSHV.dtype)


def non_local_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    *,
    normalization: str = "softmax",
    key_mask_BS: KeyMask | None = None,
) -> Outputs:
    """Computes D(Q, K, V) = rho(Q K^T) V of non-local modules: the quadratic counterpart.

    Args:
      normalization: "softmax" over the keys (q^T k is not scaled), or "scaling" by 1 / n.

    Raises:
      ValueError: an argument has a wrong type or shape, or the normalisation is unknown.
    """
    check_normalization(normalization)
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BSHK=k_BSHK, v_BSHV=v_BSHV)
    checks.tokens(sizes, key_mask_BS=key_mask_BS)
    dtype, narrow = (f(q_BTHK, k_BSHK, v_BSHV) for f in (accumulation_dtype, jnp.result_type))
    mask = True
    if key_mask_BS is not None:
        mask = key_mask_BS[:, None, None]
        k_BSHK, v_BSHV = keep(key_mask_BS, k_BSHK), keep(key_mask_BS, v_BSHV)
    weights = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=dtype)
    if normalization == "softmax":
        weights = jax.nn.softmax(weights, axis=-1, where=mask)
    else:
        weights = jnp.where(mask, weights, 0) / _count(k_BSHK, key_mask_BS)
    o = jnp.einsum("bhts,bshv->bthv", weights.astype(narrow), v_BSHV, preferred_element_type=dtype)
    return o.astype(v_BSHV.dtype)


def check_normalization(normalization: str) -> None:
    """Raises a ValueError if the normalisation is unknown."""
    checks.choice("normalization", normalization, NORMALIZATIONS)


def _contexts(state, sizes, dtype):
    """Returns log z and G = S / z of a state; an all-zero state is empty."""
    if state is None:
        shape = tuple(sizes[axis] for axis in "BHKV")
        return jnp.full(shape[:3], EMPTY, dtype), jnp.zeros(shape, dtype)
    sums, z = state.sums[..., :-1], state.sums[..., -1]
    z = jnp.where(z > 0, z, 1)
    log_sum = jnp.where(state.sums[..., -1] > 0, state.log_scale + jnp.log(z), EMPTY)
    return log_sum.astype(dtype), (sums / z[..., None]).astype(dtype)


def _count(k: Float[Array, "B S H K"], mask: KeyMask | None) -> Float[Array, "#B 1 1 1"]:
    if mask is None:
        return jnp.full((1, 1, 1, 1), k.shape[1] * sequence_parallel.shards(), jnp.float32)
    count_B = sequence_parallel.total(jnp.sum(mask, axis=1, dtype=jnp.float32))
    return jnp.maximum(count_B, 1)[:, None, None, None]
