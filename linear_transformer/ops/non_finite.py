"""NaN and Inf in a sum over tokens: the outputs that depend on one are NaN, and no others.

A mask multiplies by 0, and 0 x NaN is NaN, in a sum as in its gradients.  Tokens that are not
finite are therefore 0 in the operands of a sum, and NaN is put afterwards where a query sees one of
them.  No gradient passes through such an output, so the gradients of all others are what they would
be without it.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact


def finite_tokens(*arrays: Inexact[Array, "B T ..."]) -> Bool[Array, "B T"]:
    """Whether all features of a token are finite, in every array."""
    each = (jnp.all(jnp.isfinite(x), axis=tuple(range(2, x.ndim))) for x in arrays)
    return functools.reduce(jnp.logical_and, each)


def keep(
    tokens_BT: Bool[Array, "#B T"], x_BT: Inexact[Array, "B T ..."]
) -> Inexact[Array, "B T ..."]:
    """The marked tokens, and zeros in place of the others."""
    return jnp.where(tokens_BT.reshape(*tokens_BT.shape, *[1] * (x_BT.ndim - 2)), x_BT, 0)


def spoil(
    tokens_BT: Bool[Array, "#B T"], x_BT: Inexact[Array, "B T ..."]
) -> Inexact[Array, "B T ..."]:
    """NaN in place of the marked tokens."""
    return jnp.where(tokens_BT.reshape(*tokens_BT.shape, *[1] * (x_BT.ndim - 2)), jnp.nan, x_BT)


def opaque(x_BT: Inexact[Array, "B T ..."]) -> Inexact[Array, "B T ..."]:
    """The same values, without a gradient of the tokens that are not finite.

    What follows a sum, such as a norm of all features, makes NaN of the gradient of 0 of a token of
    which any feature is NaN.
    """
    finite_BT = finite_tokens(x_BT).reshape(*x_BT.shape[:2], *[1] * (x_BT.ndim - 2))
    return jnp.where(finite_BT, x_BT, lax.stop_gradient(x_BT))


def contained(
    q_BT: Inexact[Array, "B T ..."],
    k_BS: Inexact[Array, "B S ..."],
    v_BS: Inexact[Array, "B S ..."],
    visible_BTS: Bool[Array, "#B T S"] | None,
) -> tuple[
    Inexact[Array, "B T ..."],
    Inexact[Array, "B S ..."],
    Inexact[Array, "B S ..."],
    Bool[Array, "#B #T"],
]:
    """Operands of attention that are finite, and the queries whose outputs are to be spoiled.

    Args:
      q_BT, k_BS, v_BS: queries, keys and values.
      visible_BTS: which keys a query sees; None is all.
    """
    if q_BT.shape[1] == 1:  # no need to search: a single query is spoiled by what it sees
        if visible_BTS is not None:
            k_BS, v_BS = (keep(visible_BTS[:, 0], x) for x in (k_BS, v_BS))
        return q_BT, k_BS, v_BS, jnp.zeros((1, 1), bool)
    queries_BT, keys_BS = finite_tokens(q_BT), finite_tokens(k_BS, v_BS)
    lost_BxS = ~keys_BS[:, None]
    seen_BTS = lost_BxS if visible_BTS is None else visible_BTS & lost_BxS
    k_BS, v_BS = (keep(keys_BS, x) for x in (k_BS, v_BS))
    return keep(queries_BT, q_BT), k_BS, v_BS, jnp.any(seen_BTS, axis=2) | ~queries_BT
