"""Sums of log forget gates, which softmax attention adds to its scores.

The Forgetting Transformer (Lin et al. 2025, arXiv:2503.02130, section 3) decays the weight of key s
for query t by the gates of the tokens after s, up to t:

    D_ts = sum over s < l <= t of log f_l = c_t - c_s,        c_t = sum over l <= t of log f_l.

After a long sequence c is large, and a difference of two rounded sums would lose the digits of D.
Each c is therefore stored as a sum of two numbers, which together have twice the digits (Knuth
1997, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B).
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from linear_transformer.ops import sequence_parallel
from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import SegmentIds

Pair = tuple[Array, Array]  # high and low part of a number


def log_sums(
    log_forget_BTH: Float[Array, "B T H"], segment_ids_BT: SegmentIds | None = None
) -> Float[Array, "B T H X"]:
    """Computes c_t as a high and a low part, on the last axis.

    Only differences of sums in one segment may be used.  The gradient adds terms that cancel; it is
    exactly 0, without rounding errors, for gates of other segments and for gates before which no
    key has a gradient.  There is one derivative, in reverse mode.

    Args:
      log_forget_BTH: log f_l.  If a gate is not finite, the sum at its own token is NaN, which
        `ops.softmax` treats as a NaN of this key; the gate counts as 0 in all other sums.
      segment_ids_BT: packed segments.
    """
    if segment_ids_BT is None:
        segment_ids_BT = jnp.zeros(log_forget_BTH.shape[:2], jnp.int32)
    log_forget_BTH = log_forget_BTH.astype(accumulation_dtype(log_forget_BTH))
    return _sums(log_forget_BTH, sequence_parallel.segment_index(segment_ids_BT))


def difference(query: Pair, key: Pair) -> Array:
    """Computes D = c_t - c_s; `query_low` has the gradient of c_t and `key_high` that of c_s.

    A number that is added to all scores of a query changes no output, so the gradient of c_t is 0
    but for rounding errors.  The gradients of the query's keys have the same errors, and the sums
    of `log_sums` over later tokens cancel the errors of all queries whose keys are later too.
    """
    (query_high, query_low), (key_high, key_low) = query, key
    return lax.stop_gradient(query_high) - key_high + (query_low - lax.stop_gradient(key_low))


def _add(first: Pair, second: Pair) -> Pair:
    high = first[0] + second[0]
    part = high - first[0]
    error = (first[0] - (high - part)) + (second[0] - part)  # of `high`, exactly
    low = first[1] + second[1] + error
    total = high + low
    return total, low - (total - high)


@custom_vjp()
def _sums(log_forget_BTH: Float[Array, "B T H"], run_BT: Int[Array, "B T"]) -> Array:
    return _forward(log_forget_BTH, run_BT)[0]


def _forward(log_forget_BTH, run_BT):
    def of_rows(log_forget_BTH):
        zeros_BTH = jnp.zeros_like(log_forget_BTH)
        return jnp.stack(lax.associative_scan(_add, (log_forget_BTH, zeros_BTH), axis=1), axis=-1)

    finite_BTH = jnp.isfinite(log_forget_BTH)
    sums_BTHX = sequence_parallel.on_whole_rows(of_rows, jnp.where(finite_BTH, log_forget_BTH, 0))
    return jnp.where(finite_BTH[..., None], sums_BTHX, jnp.nan), (finite_BTH, run_BT)


def _backward(residuals, dsums_BTHX):
    finite_BTH, run_BT = residuals
    dlog_BTH = sequence_parallel.on_whole_rows(_sums_of_later, dsums_BTHX, run_BT)
    return jnp.where(finite_BTH, dlog_BTH, 0), None


def _sums_of_later(dsums_BTHX: Array, run_BT: Array) -> Array:
    """Sums each token and those after it in its segment; 0 if no key before it has a gradient."""

    def add(later, own):  # sums of the first segment of some tokens, and the segment's index
        return own[0] + jnp.where(later[1] == own[1], later[0], 0), own[1]

    tokens = (jnp.sum(dsums_BTHX, axis=-1), run_BT[..., None])
    sums_BTH, _ = lax.associative_scan(add, tokens, reverse=True, axis=1)
    keys_BTH = dsums_BTHX[..., 0]  # see `difference`
    nonzero_BTH = lax.cummax((keys_BTH != 0).astype(jnp.int32), axis=1)
    before_BTH = jnp.pad(nonzero_BTH[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.where(before_BTH > 0, sums_BTH, 0)


_sums.defvjp(_forward, _backward)
