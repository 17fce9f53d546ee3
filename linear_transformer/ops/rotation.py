"""Cumulative rotation of feature pairs by data-dependent angles: a complex diagonal recurrence.

A state of complex features with transitions exp(i theta_t) is a real state of twice the features
whose keys and queries are rotated by the sum of the angles up to their token (Lahoti et al. 2026,
Mamba-3, proposition 3).
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import segments, sequence_parallel
from linear_transformer.ops.non_finite import (
    drop_non_finite_gradient,
    finite_tokens,
    keep,
    set_nan,
)
from linear_transformer.types import SegmentIds

Turns = Float[Array, "B T H R"]


def cumulative_turns(
    turns_BTHR: Turns,
    initial_BHR: Float[Array, "B H R"] | None = None,
    segment_ids_BT: SegmentIds | None = None,
) -> Turns:
    """Sums the angles of a segment up to each token, in turns of 2 pi, without whole turns.

    Dropping whole turns is exact and keeps the digits of the sum; 2 pi itself is rounded.

    Args:
      turns_BTHR: angles in turns; one that is not finite counts as 0.
      initial_BHR: sum before the first token, in its segment; zeros if None.
      segment_ids_BT: packed segments; the sum starts anew in each of them.
    """
    turns_BTHR = jnp.where(jnp.isfinite(turns_BTHR), turns_BTHR, 0)
    if initial_BHR is not None:
        turns_BTHR = turns_BTHR.at[:, 0].add(initial_BHR)

    def add(earlier, later):
        before, _ = earlier
        own, starts = later
        total = before + own
        total = jnp.where(starts, own, total - jnp.round(total))
        return total, earlier[1] | starts

    def on_row(turns, segment_ids):
        starts = jnp.zeros(turns.shape[:2], bool)
        if segment_ids is not None:
            starts = segments.starts(segment_ids)
        starts = jnp.broadcast_to(starts[..., None, None], turns.shape)
        return lax.associative_scan(add, (turns, starts), axis=1)[0]

    sums_BTHR = sequence_parallel.on_whole_rows(on_row, turns_BTHR, segment_ids_BT)
    # Sums would spread a gradient that is not finite to all tokens before.
    return drop_non_finite_gradient(sums_BTHR)


def rotated(x_BTHK: Float[Array, "B T H K"], turns_BTHR: Turns) -> Float[Array, "B T H K"]:
    """Rotates the feature pairs (r, r + R) by the turns of r; features from 2 R on stay."""
    finite_BT = finite_tokens(x_BTHK)
    x_BTHK = keep(finite_BT, x_BTHK)  # a gradient of 0 times NaN would be NaN
    pairs = turns_BTHR.shape[-1]
    angles_BTHR = 2 * math.pi * turns_BTHR
    sin, cos = (f(angles_BTHR).astype(x_BTHK.dtype) for f in (jnp.sin, jnp.cos))
    first, second, rest = jnp.split(x_BTHK, [pairs, 2 * pairs], axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return set_nan(~finite_BT, jnp.concatenate([*turned, rest], axis=-1))
