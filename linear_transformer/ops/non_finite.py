"""NaN and Inf in sums over tokens: only the outputs that depend on a non-finite token are NaN.

A mask that multiplies by 0 is not enough, since 0 x NaN is NaN, in a sum and in its gradients.
Non-finite tokens are therefore replaced by 0 in the operands of a sum; afterwards the outputs of
queries that see such a token are set to NaN.  No gradient passes through these outputs, so all
other gradients are as without the non-finite tokens.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact

from linear_transformer.ops.custom_vjp import custom_vjp


def finite_tokens(*arrays: Inexact[Array, "B T ..."]) -> Bool[Array, "B T"]:
    """Mask of the tokens with only finite features, in all arrays."""
    each = (jnp.all(jnp.isfinite(x), axis=tuple(range(2, x.ndim))) for x in arrays)
    return functools.reduce(jnp.logical_and, each)


def keep(
    tokens_BT: Bool[Array, "#B T"], x_BT: Inexact[Array, "B T ..."]
) -> Inexact[Array, "B T ..."]:
    """Keeps the marked tokens and replaces all others by zeros."""
    return jnp.where(tokens_BT.reshape(*tokens_BT.shape, *[1] * (x_BT.ndim - 2)), x_BT, 0)


def set_nan(
    tokens_BT: Bool[Array, "#B T"], x_BT: Inexact[Array, "B T ..."]
) -> Inexact[Array, "B T ..."]:
    """Replaces the marked tokens by NaN."""
    return jnp.where(tokens_BT.reshape(*tokens_BT.shape, *[1] * (x_BT.ndim - 2)), jnp.nan, x_BT)


def stop_non_finite_gradient(x_BT: Inexact[Array, "B T ..."]) -> Inexact[Array, "B T ..."]:
    """Returns `x_BT`, without a gradient for tokens with a non-finite feature.

    Without it an operation after the sum, such as a norm over all features, would turn the gradient
    0 of such a token into NaN.
    """
    finite_BT = finite_tokens(x_BT).reshape(*x_BT.shape[:2], *[1] * (x_BT.ndim - 2))
    return jnp.where(finite_BT, x_BT, lax.stop_gradient(x_BT))


@custom_vjp()
def drop_non_finite_gradient(x_BT: Inexact[Array, "B T ..."]) -> Inexact[Array, "B T ..."]:
    """Returns `x_BT`; a token whose gradient is not finite gets none.

    Within a chunk the gradients of all tokens may be NaN where one token is.  This keeps them from
    an operation that would pass them to other chunks.
    """
    return x_BT


drop_non_finite_gradient.defvjp(
    lambda x_BT: (x_BT, None), lambda _, g_BT: (keep(finite_tokens(g_BT), g_BT),)
)


def contained(
    q_BT: Inexact[Array, "B T ..."],
    k_BS: Inexact[Array, "B S ..."],
    v_BS: Inexact[Array, "B S ..."],
    visible_BTS: Bool[Array, "#B #T S"] | None,
) -> tuple[
    Inexact[Array, "B T ..."],
    Inexact[Array, "B S ..."],
    Inexact[Array, "B S ..."],
    Bool[Array, "#B #T"],
]:
    """Returns finite operands of attention, and a mask of the queries with outputs to set to NaN.

    Args:
      q_BT, k_BS, v_BS: queries, keys and values.
      visible_BTS: mask of the keys that each query sees; None means all.
    """
    if q_BT.shape[1] == 1:  # a NaN that a single query sees reaches its output by itself
        if visible_BTS is not None:
            k_BS, v_BS = (keep(visible_BTS[:, 0], x) for x in (k_BS, v_BS))
        return q_BT, k_BS, v_BS, jnp.zeros((1, 1), bool)
    queries_BT, keys_BS = finite_tokens(q_BT), finite_tokens(k_BS, v_BS)
    lost_BxS = ~keys_BS[:, None]
    seen_BTS = lost_BxS if visible_BTS is None else visible_BTS & lost_BxS
    k_BS, v_BS = (keep(keys_BS, x) for x in (k_BS, v_BS))
    return keep(queries_BT, q_BT), k_BS, v_BS, jnp.any(seen_BTS, axis=2) | ~queries_BT
