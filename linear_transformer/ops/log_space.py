"""Sums of exponentials of any magnitude: states with a logarithmic scale.

Features that are exponentials, phi(k) = exp(x), overflow as soon as x passes 88 in fp32.  Their
sums are kept as S = exp(log_scale) sums, where log_scale is a running maximum or a running
log-sum-exp of the exponents, so that exp is only applied to numbers <= 0.  The scale depends on the
keys up to the query only.  A maximum over the whole sequence, as in the released code of FAVOR+,
would let later tokens change the rounding of earlier outputs, and does not exist while decoding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from linear_transformer.ops import checks, recurrence, segments, sequence_parallel
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.types import SegmentIds, State

# The logarithm of an empty sum: finite, so that differences are never NaN, and low enough to be
# negligible beside any true exponent.
EMPTY = -1e30


class ScaledState(NamedTuple):
    """State S = exp(log_scale) sums; the last column sums the weights alone.

    All zeros is the state before the first token.
    """

    sums: State
    log_scale: Float[Array, "B H *K"]


def check(
    q, k, v, state, scale_axes, *, direction, segment_ids_BT, key_mask_BS, form, chunk_size
) -> checks.Sizes:
    """Checks the arguments of attention with a `ScaledState`; its scale has the axes `scale_axes`.

    Returns:
      The size of every letter.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    checks.choice("direction", direction, ("causal", "bidirectional"))
    checks.choice("form", form, recurrence.FORMS)
    checks.counts(chunk_size=chunk_size)
    sizes = checks.arrays(q_BTHK=q, k_BSHK=k, v_BSHV=v)
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT, key_mask_BS=key_mask_BS)
    T, S = sizes["T"], sizes["S"]
    if S != T and (direction == "causal" or segment_ids_BT is not None):
        raise ValueError(f"{T} queries and {S} keys: only unpacked bidirectional can differ")
    checks.state("initial_state", state, ScaledState)
    if state is not None:
        leaves = {
            "initial_state.sums": (state.sums, "BHKW"),
            "initial_state.log_scale": (state.log_scale, scale_axes),
        }
        checks.arrays(sizes | {"W": sizes["V"] + 1}, **leaves)
    return sizes


def seen(
    marked_BS: Bool[Array, "B S"],
    before_B: Bool[Array, " B"],
    segment_ids_BT: SegmentIds | None,
    direction: str,
) -> Bool[Array, "B #T"]:
    """Returns whether a query sees a marked token, or `before_B` marks its initial state."""
    marks_BS, before = (x.astype(jnp.float32) for x in (marked_BS, before_B))
    return largest_seen(marks_BS, before, segment_ids_BT, direction) > 0


def largest_seen(
    x_BTHK: Float[Array, "B S ..."],
    initial_BHK: Float[Array, "B ..."],
    segment_ids_BT: SegmentIds | None,
    direction: str,
) -> Float[Array, "B #T ..."]:
    """Largest value that each query sees, without gradient: for scales that cancel."""
    if direction == "bidirectional" and segment_ids_BT is None:
        top = sequence_parallel.largest(jnp.max(x_BTHK, axis=1))
        return lax.stop_gradient(jnp.maximum(initial_BHK, top))[:, None]
    x, initial = lax.stop_gradient(x_BTHK), lax.stop_gradient(initial_BHK)
    running = functools.partial(_running, jnp.maximum)
    running_BT = _over_shards(jnp.maximum, running, x, initial, segment_ids_BT)
    return _at_query(running_BT, segment_ids_BT, direction)


def log_sum_seen(
    x_BTHK: Float[Array, "B S ..."],
    initial_BHK: Float[Array, "B ..."],
    segment_ids_BT: SegmentIds | None,
    direction: str,
) -> Float[Array, "B #T ..."]:
    """Logarithm of exp(initial) + sum of exp(x_j) over the tokens j that each query sees."""
    if direction == "bidirectional" and segment_ids_BT is None:
        own = jax.nn.logsumexp(x_BTHK, axis=1)
        top = sequence_parallel.largest(own)
        every = top + jnp.log(sequence_parallel.total(jnp.exp(own - top)))
        return jnp.logaddexp(initial_BHK, every)[:, None]
    running_BT = _over_shards(jnp.logaddexp, _log_sum, x_BTHK, initial_BHK, segment_ids_BT)
    return _at_query(running_BT, segment_ids_BT, direction)


def _at_query(running_BT, segment_ids_BT: SegmentIds | None, direction: str):
    """Running value at each query, or at the end of its segment if bidirectional."""
    if direction == "causal" or segment_ids_BT is None:
        return running_BT
    return at_segment_ends(running_BT, segment_ids_BT)


def log_decay(
    running_BTHK: Float[Array, "B T ..."], initial_BHK: Float[Array, "B ..."]
) -> Float[Array, "B T ..."]:
    """Log decay of the sums, the previous running value minus the current one."""
    return at_most_zero(_previous(running_BTHK, initial_BHK) - running_BTHK)


def attend(q, k, v, sums, before, running, *, direction, segment_ids_BT, form, chunk_size):
    """Attends with keys relative to the running log scale, from sums relative to the scale before.

    If bidirectional, `running` is the scale of the whole segment.  The output has no normaliser.
    """
    if direction == "causal":
        options = {"segment_ids_BT": segment_ids_BT, "form": form, "chunk_size": chunk_size}
        decay = log_decay(running, before)
        return decayed_attention(q, k, v, decay, initial_state=sums, **options)
    factor = jnp.exp(before - running[:, 0])
    factor = factor.reshape(*factor.shape, *[1] * (sums.ndim - factor.ndim))
    return linear_attention(
        q,
        k,
        v,
        direction="bidirectional",
        feature_map=None,
        normalize=False,
        initial_state=factor * sums,
        segment_ids_BT=segment_ids_BT,
    )


def at_most_zero(log_decay: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Clamps logarithms to <= 0 (rounding, or unused values); the gradient is unchanged."""
    return log_decay - lax.stop_gradient(jnp.maximum(log_decay, 0))


def _previous(
    running_BTHK: Float[Array, "B T ..."], initial_BHK: Float[Array, "B ..."]
) -> Float[Array, "B T ..."]:
    """Running value one token earlier; at a later segment's start its value is not used."""
    if sequence_parallel.shards() > 1:
        before_BHK = sequence_parallel.halo(running_BTHK, before=1)[:, 0]
        initial_BHK = jnp.where(sequence_parallel.shard() == 0, initial_BHK, before_BHK)
    return jnp.concatenate([initial_BHK[:, None], running_BTHK[:, :-1]], axis=1)


def at_segment_ends(
    running_BTHK: Float[Array, "B T ..."], segment_ids_BT: SegmentIds
) -> Float[Array, "B T ..."]:
    """Value of a non-decreasing running quantity at the end of each token's segment."""
    starts = segments.starts(segment_ids_BT)
    time = starts.shape[1]
    last_BT = jnp.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    end_BT = lax.cummin(jnp.where(last_BT, jnp.arange(time), time), axis=1, reverse=True)
    ends = jnp.take_along_axis(running_BTHK, _broadcast(end_BT, running_BTHK), axis=1)
    if sequence_parallel.shards() == 1:
        return ends
    # The shard's last segment may end on a later shard.
    first, nothing = ends[:, 0], jnp.full_like(ends[:, 0], EMPTY)
    ids_BT = jnp.flip(segment_ids_BT, axis=1)
    ending, goes_on_B = sequence_parallel.entering_value(
        jnp.maximum, first, nothing, ids_BT, reverse=True
    )
    run_BT = segments.segment_index(segment_ids_BT)
    is_last_BT = goes_on_B[:, None] & (run_BT == run_BT[:, -1:])
    return jnp.where(_broadcast(is_last_BT, ends), jnp.maximum(ending[:, None], ends), ends)


def _broadcast(x_BT: Int[Array, "B T"] | Array, like: Array) -> Array:
    return x_BT.reshape(*x_BT.shape, *[1] * (like.ndim - 2))


def _over_shards(combine: Callable, running: Callable, x, initial, segment_ids_BT):
    """Computes `running(x, initial, segment_ids_BT)` for a sequence on one or more shards."""
    if sequence_parallel.shards() == 1:
        return running(x, initial, segment_ids_BT)
    own = running(x, jnp.full_like(initial, EMPTY), segment_ids_BT)
    entering, goes_on_B = sequence_parallel.entering_value(
        combine, own[:, -1], initial, segment_ids_BT
    )
    is_first_BT = jnp.broadcast_to(goes_on_B[:, None], own.shape[:2])
    if segment_ids_BT is not None:
        is_first_BT &= segments.segment_index(segment_ids_BT) == 0
    return jnp.where(_broadcast(is_first_BT, own), combine(entering[:, None], own), own)


def _running(combine: Callable, x, initial, segment_ids_BT):
    x = x.at[:, 0].set(combine(initial, x[:, 0]))
    if segment_ids_BT is None:
        return lax.associative_scan(combine, x, axis=1)
    starts = _broadcast(segments.starts(segment_ids_BT), x)

    def compose(earlier, later):
        start_0, x_0 = earlier
        start_1, x_1 = later
        return start_0 | start_1, jnp.where(start_1, x_1, combine(x_0, x_1))

    return lax.associative_scan(compose, (starts, x), axis=1)[1]


@jax.custom_vjp
def _log_sum(x, initial, segment_ids_BT):
    return _running(jnp.logaddexp, x, initial, segment_ids_BT)


def _log_sum_forward(x, initial, segment_ids_BT):
    log_sum = _log_sum(x, initial, segment_ids_BT)
    return log_sum, (x, initial, segment_ids_BT, log_sum)


def _log_sum_backward(residuals, cotangent):
    """Computes dx_j = exp(x_j - L_j) R_j, R_j = dL_j + exp(L_j - L_{j+1}) R_{j+1}: weights <= 1."""
    x, initial, segment_ids_BT, log_sum = residuals
    decay = jnp.exp(log_sum[:, :-1] - log_sum[:, 1:])
    if segment_ids_BT is not None:
        decay = jnp.where(_broadcast(segments.starts(segment_ids_BT), x)[:, 1:], 0, decay)
    decay = jnp.concatenate([decay, jnp.zeros_like(x[:, :1])], axis=1)

    def compose(later, earlier):  # the scan runs backwards in time
        a_1, r_1 = later
        a_0, r_0 = earlier
        return a_0 * a_1, r_0 + a_0 * r_1

    _, r = lax.associative_scan(compose, (decay, cotangent), axis=1, reverse=True)
    dinitial = jnp.exp(initial - log_sum[:, 0]) * r[:, 0]
    return jnp.exp(x - log_sum) * r, dinitial, None


_log_sum.defvjp(_log_sum_forward, _log_sum_backward)
