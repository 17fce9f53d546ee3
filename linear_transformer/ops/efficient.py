"""Efficient attention: E(Q, K, V) = rho_q(Q) (rho_k(K)^T V).

Shen, Zhang, Zhao, Yi and Li, 2021 (arXiv:1812.01243).  With softmax normalisation rho_q is a
softmax over the features of each query and rho_k a softmax over the positions, feature by feature;
with scaling normalisation both divide by the square root of the number n of positions, and the
result is exactly dot-product attention with weights q^T k / n.

The softmax over positions sees all of them.  Its causal form takes those up to the query:

    o_i = sum_f rho_q(q_i)_f G_if,    G_if = sum_{j <= i} exp(k_jf) v_j / z_if,
    z_if = sum_{j <= i} exp(k_jf)

so that G_i are the paper's global context vectors of the prefix, each of the features has its own
normaliser, and the last output is that of the bidirectional form.  (Another causal form in use,
that of lucidrains/linear-attention-transformer, divides once, by rho_q(q_i)^T z_i: it is linear
attention with the feature maps softmax and exp, and lets features with large keys dominate.)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from linear_transformer.ops import log_space, recurrence, sequence_parallel
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.log_space import EMPTY, ScaledState
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
    """Efficient attention with softmax normalisation, in time and memory linear in T.

    Every exponent is k_j - L with L = log z >= k_j, so keys of any size are safe.

    Args:
      q_BTHK: queries, before their softmax over the features.
      k_BSHK: keys, before the softmax over positions.
      v_BSHV: values.
      direction: "causal" or "bidirectional" (all keys; S may differ from T: cross attention).
      initial_state: sums (B, H, K, V + 1) and log_scale (B, H, K) of what came before.
      segment_ids_BT: packed documents; each token sees its own segment only.
      key_mask_BS: False drops a key exactly; a query that sees no key gets 0.
      form, chunk_size: of the causal recurrence, see `ops.decay.decayed_attention`.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the state: [G, 1] and log z of the last token.

    Raises:
      ValueError: on an unknown direction or form, or on shapes that do not fit.
    """
    _check(q_BTHK, k_BSHK, v_BSHV, direction, form, initial_state, segment_ids_BT)
    dtype = accumulation_dtype(q_BTHK, k_BSHK, v_BSHV)
    weights_BTHK = jax.nn.softmax(q_BTHK.astype(dtype), axis=-1).astype(v_BSHV.dtype)
    keys = k_BSHK.astype(dtype)
    if key_mask_BS is not None:
        keys = jnp.where(key_mask_BS[:, :, None, None], keys, EMPTY)
    log_sum, context = _contexts(initial_state, keys, v_BSHV)
    packed = {"segment_ids_BT": segment_ids_BT}
    if direction == "bidirectional" and segment_ids_BT is None:
        total = jnp.logaddexp(log_sum, log_space.log_sum(keys))[:, None]
    else:
        total = log_space.running_log_sum(keys, log_sum, segment_ids_BT)
        if direction == "bidirectional":
            total = log_space.at_segment_ends(total, segment_ids_BT)
    shares = jnp.exp(keys - total)
    if key_mask_BS is not None:
        shares = jnp.where(key_mask_BS[:, :, None, None], shares, 0)
    shares = shares.astype(v_BSHV.dtype)
    if direction == "causal":
        log_decay = log_space.previous(total, log_sum) - total
        o, context = decayed_attention(
            weights_BTHK,
            shares,
            v_BSHV,
            log_decay,
            initial_state=context,
            form=form,
            chunk_size=chunk_size,
            **packed,
        )
    else:
        o, context = linear_attention(
            weights_BTHK,
            shares,
            v_BSHV,
            direction="bidirectional",
            feature_map=None,
            normalize=False,
            initial_state=jnp.exp(log_sum - total[:, 0])[..., None] * context,
            **packed,
        )
    return o, ScaledState(jnp.pad(context, _LAST_COLUMN, constant_values=1), total[:, -1])


_LAST_COLUMN = ((0, 0), (0, 0), (0, 0), (0, 1))


def scaled_efficient_attention(
    q_BTHK: Queries, k_BSHK: Keys, v_BSHV: Values, key_mask_BS: KeyMask | None = None
) -> Outputs:
    """Efficient attention with scaling normalisation, bidirectional or cross.

    rho_q and rho_k together divide by the number of keys that are not masked.
    """
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
    """Dot-product attention D(Q, K, V) = rho(Q K^T) V of non-local modules: the quadratic twin.

    Args:
      normalization: "softmax" over the keys (q^T k is not scaled), or "scaling" by 1 / n.

    Raises:
      ValueError: on an unknown normalisation.
    """
    check_normalization(normalization)
    weights = jnp.einsum(
        "bthk,bshk->bhts",
        q_BTHK,
        k_BSHK,
        preferred_element_type=accumulation_dtype(q_BTHK, k_BSHK, v_BSHV),
    )
    mask = True if key_mask_BS is None else key_mask_BS[:, None, None]
    if normalization == "softmax":
        weights = jax.nn.softmax(weights, axis=-1, where=mask)
    else:
        weights = jnp.where(mask, weights, 0) / _count(k_BSHK, key_mask_BS)
    return jnp.einsum("bhts,bshv->bthv", weights.astype(v_BSHV.dtype), v_BSHV)


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization is {normalization!r}; choose one of {', '.join(NORMALIZATIONS)}"
        )


def _check(q, k, v, direction, form, initial_state, segment_ids_BT):
    if direction not in ("causal", "bidirectional"):
        raise ValueError(f"direction is {direction!r}; choose causal or bidirectional")
    if form not in recurrence.FORMS:
        raise ValueError(f"form is {form!r}; choose one of {', '.join(recurrence.FORMS)}")
    batch, source, heads, width = k.shape
    if (q.shape[0], *q.shape[2:]) != (batch, heads, width) or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit")
    if source != q.shape[1] and (direction == "causal" or segment_ids_BT is not None):
        raise ValueError(
            f"{q.shape[1]} queries and {source} keys: only unpacked bidirectional can differ"
        )
    shapes = ((batch, heads, width, v.shape[-1] + 1), (batch, heads, width))
    if initial_state is not None and tuple(x.shape for x in initial_state) != shapes:
        raise ValueError(f"initial_state is {[x.shape for x in initial_state]}, not {shapes}")


def _contexts(state, keys, v):
    """log z and G = S / z of the state, which is empty where it is all zeros."""
    if state is None:
        batch, _, heads, width = keys.shape
        shape = (batch, heads, width)
        return jnp.full(shape, EMPTY, keys.dtype), jnp.zeros((*shape, v.shape[-1]), keys.dtype)
    sums, z = state.sums[..., :-1], state.sums[..., -1]
    z = jnp.where(z > 0, z, 1)
    log_sum = jnp.where(state.sums[..., -1] > 0, state.log_scale + jnp.log(z), EMPTY)
    return log_sum.astype(keys.dtype), (sums / z[..., None]).astype(keys.dtype)


def _count(k: Float[Array, "B S H K"], mask: KeyMask | None) -> Float[Array, "#B 1 1 1"]:
    if mask is None:
        return jnp.full((1, 1, 1, 1), k.shape[1] * sequence_parallel.shards(), jnp.float32)
    count_B = sequence_parallel.total(jnp.sum(mask, axis=1, dtype=jnp.float32))
    return jnp.maximum(count_B, 1)[:, None, None, None]
