"""The recurrence of all mechanisms, token by token and as an associative scan.

    S_t = a_t S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t        (S: K x V per head)

`a_t` is 1 for additive attention and 0 at the start of a packed segment; broadcast over K and V it
is also the scalar or vector decay of the gated mechanisms.  The two forms here are the definition:
`recurrent` is the RNN (O(K V) memory, T sequential steps) and the reference in the tests;
`associative` composes the affine maps S -> a S + B in log2(T) parallel steps (O(T K V) memory).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.types import Keys, Outputs, Queries, SegmentIds, State, Values

FORMS = ("auto", "recurrent", "parallel", "associative", "chunk", "pallas")

Retention = Float[Array, "B T #H #K #V"]


def accumulation_dtype(*arrays: Array) -> jnp.dtype:
    """Dtype of states and sums: fp32 for fp32 and narrower inputs, fp64 for fp64 inputs."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def initial_state(state: Array | None, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Returns the state in `dtype`, or zeros if the state is None."""
    return jnp.zeros(shape, dtype) if state is None else state.astype(dtype)


def per_token(
    log_decay: Float[Array, " H"] | Float[Array, "B T H"] | Float[Array, "B T H K"], q_BTHK: Queries
) -> Float[Array, "B T H _"]:
    """Broadcasts log decays to (B, T, H, 1) for scalars or (B, T, H, K) for vectors."""
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, q_BTHK.shape[:3])
    return log_decay[..., None] if log_decay.ndim == 3 else log_decay


def clipped(log_decay: Array) -> Array:
    """Clamps log decays from below, where exp is 0 anyway, so that their sums are finite."""
    return jnp.maximum(log_decay, math.log(float(jnp.finfo(log_decay.dtype).smallest_subnormal)))


def backwards(
    attend: Callable, *arguments: Array | tuple[Array, ...] | SegmentIds | None
) -> tuple[Array, Array]:
    """Runs `attend(*tokens, state, segment_ids, reverse=True)` from the last token to the first."""
    *tokens, state, ids = arguments
    *tokens, ids = jax.tree.map(lambda x: jnp.flip(x, 1), (*tokens, ids))
    o, state = attend(*tokens, state, ids, reverse=True)
    return jnp.flip(o, 1), state


def recurrent(
    q_BTHK: Queries, k_BTHK: Keys, v_BTHV: Values, retention: Retention, state_BHKV: State
) -> tuple[Outputs, State]:
    """Runs one `lax.scan` step per token; output and state have the accumulation dtype."""

    def step(state_BHKV, token):
        q_BHK, k_BHK, v_BHV, a = token
        state_BHKV = a * kept(a, state_BHKV) + k_BHK[..., :, None] * v_BHV[..., None, :]
        return state_BHKV, jnp.einsum("bhk,bhkv->bhv", q_BHK, state_BHKV)

    q_BTHK, k_BTHK, v_BTHV, a, is_finite = _finite(
        *(x.astype(state_BHKV.dtype) for x in (q_BTHK, k_BTHK, v_BTHV, retention))
    )
    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q_BTHK, k_BTHK, v_BTHV, a))
    state_BHKV, o_TBHV = lax.scan(step, state_BHKV, tokens)
    return jnp.where(is_finite, jnp.moveaxis(o_TBHV, 0, 1), jnp.nan), state_BHKV


def associative(
    q_BTHK: Queries, k_BTHK: Keys, v_BTHV: Values, retention: Retention, state_BHKV: State
) -> tuple[Outputs, State]:
    """Runs `lax.associative_scan` over the maps S -> a S + B, the first with the initial state."""
    q_BTHK, k_BTHK, v_BTHV, a, is_finite = _finite(
        *(x.astype(state_BHKV.dtype) for x in (q_BTHK, k_BTHK, v_BTHV, retention))
    )
    update = k_BTHK[..., :, None] * v_BTHV[..., None, :]
    update = update.at[:, 0].add(a[:, 0] * kept(a[:, 0], state_BHKV))

    def compose(earlier, later):
        a_0, update_0 = earlier
        a_1, update_1 = later
        return a_1 * a_0, a_1 * kept(a_1, update_0) + update_1

    _, states_BTHKV = lax.associative_scan(compose, (a, update), axis=1)
    o_BTHV = jnp.einsum("bthk,bthkv->bthv", q_BTHK, states_BTHKV)
    return jnp.where(is_finite, o_BTHV, jnp.nan), states_BTHKV[:, -1]


def kept(retention: Array, state: Array) -> Array:
    """Returns the state, and 0 where the retention is 0: 0 x NaN is NaN, also in gradients."""
    return jnp.where(retention == 0, 0, state)


def _finite(q, k, v, retention):
    """Returns inputs in which only k and v may be NaN, and a mask of the finite queries.

    An output or a state on which nothing depends has a gradient of 0.  Multiplied by a query or a
    retention of NaN, this 0 would become a gradient of NaN for all earlier tokens.
    """
    readable = jnp.all(jnp.isfinite(q), axis=-1, keepdims=True)
    retained = jnp.all(jnp.isfinite(retention), axis=(-2, -1))[..., None]
    v = jnp.where(retained, v, jnp.nan)
    retention = jnp.where(retained[..., None], retention, 1)
    return jnp.where(readable, q, 0), k, v, retention, readable
