"""Sequences that are spread over devices: what one shard needs from the other shards.

Inside `jax.shard_map` with a manual mesh axis "sequence", each of D shards holds T of the D T
consecutive tokens of its sequences.  The operations of this package find that axis by themselves
and compute the same outputs and gradients as one device; without the axis nothing here
communicates.

A recurrence is a composition of affine maps S -> A S + B.  A shard needs the map of its own tokens
and the state that enters it, the composition of all maps before it.  That takes 1 + log2(D)
messages of one map, O(K V) numbers per head for any T, by a prefix scan (Hillis and Steele 1986,
"Data parallel algorithms").
"""

import contextvars
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact, Int

from linear_transformer.ops import segments
from linear_transformer.types import PRNGKey, SegmentIds

AXIS = "sequence"
# Whether the function of `on_whole_rows` is traced, in which nothing is left to exchange.
_has_whole_rows = contextvars.ContextVar("has_whole_rows", default=False)
_Arrays = TypeVar("_Arrays", bound=tuple[Array | None, ...])


def shards() -> int:
    """Number of devices that share a sequence; 1 outside of `jax.shard_map` over the axis."""
    if _has_whole_rows.get():
        return 1
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1


def shard() -> Int[Array, ""]:
    """Index of this shard along the sequence."""
    return lax.axis_index(AXIS) if shards() > 1 else jnp.zeros((), jnp.int32)


def offset(time: int) -> Int[Array, ""]:
    """Index in the sequence of the first of this shard's `time` tokens."""
    return shard() * time


def places(time: int) -> Int[Array, " T"]:
    """Indices in the sequence of this shard's `time` tokens."""
    return offset(time) + jnp.arange(time)


def in_row(x: Array, length: int) -> Bool[Array, "*rows T"] | None:
    """Mask of the tokens within a sequence of `length` tokens; None if no token is padding.

    Args:
      x: an array with the shard's tokens on its last axis.
    """
    time = x.shape[-1]
    if shards() * time <= length:
        return None
    return jnp.broadcast_to(places(time) < length, x.shape)


def delayed(x_BT: Array, first_Bx: Array) -> Array:
    """Token before each token, (B, T, ...); `first_Bx` before the first of the sequence."""
    if shards() > 1:
        before_Bx = _sent(x_BT[:, -1:], 1)
        first_Bx = jnp.where(shard() == 0, first_Bx, before_Bx)
    return jnp.concatenate([first_Bx, x_BT[:, :-1]], axis=1)


def total(x: Array) -> Array:
    """Sum over all shards."""
    return lax.psum(x, AXIS) if shards() > 1 else x


def largest(x: Array) -> Array:
    """Maximum over all shards, without gradient."""
    x = lax.stop_gradient(x)
    return lax.pmax(x, AXIS) if shards() > 1 else x


def gathered(x_BT: Array) -> Array:
    """Tokens of all shards, in order, along axis 1."""
    return lax.all_gather(x_BT, AXIS, axis=1, tiled=True) if shards() > 1 else x_BT


def own(x_BT: Array) -> Array:
    """Slices this shard's tokens out of the array that `gathered` returns."""
    time = x_BT.shape[1] // shards()
    return lax.dynamic_slice_in_dim(x_BT, offset(time), time, axis=1)


def own_key(key: PRNGKey | None) -> PRNGKey | None:
    """Random key of this shard, from a key that all shards share."""
    return key if key is None or shards() == 1 else jax.random.fold_in(key, shard())


def on_whole_rows(function: Callable[..., Array], *arrays: Array | None) -> Array:
    """Computes `function` of whole sequences on every shard; returns the shard's own tokens.

    This is for functions that no smaller exchange computes exactly.

    Args:
      function: maps arrays (B, T, ...) to one (B, T, ...), as if there were one device.
      arrays: arrays of the shard's tokens, or None.
    """
    if shards() == 1:
        return function(*arrays)
    rows = [None if x is None else gathered(x) for x in arrays]
    outside = _has_whole_rows.set(True)
    try:
        y_BT = function(*rows)
    finally:
        _has_whole_rows.reset(outside)
    return own(y_BT)


def of_last(x: Array, *, reverse: bool = False) -> Array:
    """Value of the last shard (the first one if `reverse`), on all shards."""
    if shards() == 1:
        return x
    last = 0 if reverse else shards() - 1
    return lax.psum(jnp.where(shard() == last, x, jnp.zeros_like(x)), AXIS)


def _sent(x: Array, distance: int) -> Array:
    """Array of the shard `distance` before this one; zeros if there is no such shard."""
    count = shards()
    pairs = [(i, i + distance) for i in range(count) if 0 <= i + distance < count]
    return lax.ppermute(x, AXIS, pairs)


def halo(x_BT: Array, *, before: int = 0, after: int = 0) -> Array:
    """Tokens of this shard and its neighbours, (B, before + T + after, ...); zeros beyond the ends.

    If one neighbour has too few tokens, more distant ones send theirs too.
    """
    time, count = x_BT.shape[1], shards()

    def zeros(tokens):
        return jnp.zeros((x_BT.shape[0], tokens, *x_BT.shape[2:]), x_BT.dtype)

    parts = [x_BT]
    for distance in range(1, count):
        size = min(before - (distance - 1) * time, time)
        if size > 0:
            parts.insert(0, _sent(x_BT[:, time - size :], distance))
        size = min(after - (distance - 1) * time, time)
        if size > 0:
            parts.append(_sent(x_BT[:, :size], -distance))
    reached = time * (count - 1)  # tokens of the other shards, at most, on one side
    return jnp.concatenate(
        [zeros(max(before - reached, 0)), *parts, zeros(max(after - reached, 0))], axis=1
    )


def blocks(
    arrays: tuple[Array | None, ...], size: int, *, after: bool
) -> tuple[tuple[Array | None, ...], Int[Array, ""]]:
    """Whole blocks that contain this shard's tokens, cut by `size` from the start of the sequence.

    Args:
      arrays: (B, T, ...) of the shard's tokens, or None.
      size: tokens of a block.
      after: whether the later tokens of the last block are needed too.

    Returns:
      Arrays (B, L, ...), zeros where there is no token, and the index in them of the shard's first
      token.
    """
    time = next(x for x in arrays if x is not None).shape[1]
    place = offset(time) % size
    length = -(-(size - 1 + time) // size) * size

    def from_block_start(x_BT: Array) -> Array:
        x_BT = halo(x_BT, before=size - 1, after=size - 1 if after else 0)
        x_BT = jnp.pad(x_BT, ((0, 0), (0, length), *[(0, 0)] * (x_BT.ndim - 2)))
        return lax.dynamic_slice_in_dim(x_BT, size - 1 - place, length, axis=1)

    return tuple(None if x is None else from_block_start(x) for x in arrays), place


def keys_in_reach(arrays: _Arrays, window: int | None) -> tuple[_Arrays, Int[Array, " S"]]:
    """Tokens that this shard's queries may see, and the indices of the tokens in the sequence.

    Args:
      arrays: (B, T, ...) of the shard's tokens, or None.
      window: number of tokens that a query sees, itself the last; None is the whole sequence.

    Returns:
      The arrays with S tokens, and S indices, negative before the start of the sequence.
    """
    time = next(x for x in arrays if x is not None).shape[1]
    if window is None:
        places_S = jnp.arange(shards() * time)
        return jax.tree.map(gathered, arrays), places_S
    before = window - 1
    places_S = offset(time) - before + jnp.arange(before + time)
    return jax.tree.map(functools.partial(halo, before=before), arrays), places_S


def continues(segment_ids_BT: SegmentIds, *, reverse: bool = False) -> Bool[Array, " B"]:
    """Returns whether the first token is in the segment of the previous shard's last token.

    With `reverse` the arrays run backwards in time: the shard after this one is the previous shard.
    """
    before_B = _sent(segment_ids_BT[:, -1], -1 if reverse else 1)
    return before_B == segment_ids_BT[:, 0]


def segment_index(segment_ids_BT: SegmentIds) -> Int[Array, "B T"]:
    """Index of each token's segment in the whole sequence, see `segments.segment_index`."""
    run_BT = segments.segment_index(segment_ids_BT)
    if shards() == 1:
        return run_BT
    first_B = (shard() > 0) & ~continues(segment_ids_BT)
    starts_B = first_B + run_BT[:, -1]
    before_DB = jnp.arange(shards())[:, None] < shard()
    starts_before_B = jnp.sum(jnp.where(before_DB, lax.all_gather(starts_B, AXIS), 0), axis=0)
    return run_BT + (starts_before_B + first_B)[:, None]


def entering_value(
    combine: Callable[[Array, Array], Array],
    own: Inexact[Array, "B *value"],
    initial: Inexact[Array, "B *value"],
    segment_ids_BT: SegmentIds | None,
    *,
    reverse: bool = False,
) -> tuple[Inexact[Array, "B *value"], Bool[Array, " B"]]:
    """Passes values from shard to shard as long as a segment goes on: `combine(entering, own)`.

    Args:
      combine: associative function of the value that enters a shard and the shard's own value.
      own: value of the shard's last segment, which leaves the shard.
      initial: value that enters the first shard.
      segment_ids_BT: ids of the shard's tokens.
      reverse: the tokens run backwards in time, so the last shard is the first one.

    Returns:
      The value that enters this shard, and a mask that is False if the first token begins a
      segment.
    """
    place = shards() - 1 - shard() if reverse else shard()
    goes_on_B = through_B = jnp.ones(own.shape[:1], bool)
    if segment_ids_BT is not None:
        goes_on_B = (place == 0) | continues(segment_ids_BT, reverse=reverse)
        through_B = goes_on_B & ~segments.starts(segment_ids_BT).any(axis=1)
    owns, through = lax.all_gather(own, AXIS), lax.all_gather(through_B, AXIS)
    value = initial
    for n in range(shards() - 1):
        at = -1 - n if reverse else n
        kept_B = through[at].reshape(-1, *[1] * (own.ndim - 1))
        value = jnp.where(n < place, jnp.where(kept_B, combine(value, owns[at]), owns[at]), value)
    return value, goes_on_B


def entering_state(
    transition: Inexact[Array, "*transition"] | None,
    update: Inexact[Array, "*state"],
    initial_state: Inexact[Array, "*state"],
    segment_ids_BT: SegmentIds | None,
    *,
    matrix: bool = False,
    reverse: bool = False,
) -> Inexact[Array, "*state"]:
    """Computes the state before this shard's first token from the maps S -> A S + B before it.

    Args:
      transition: A of the shard's tokens, 0 where a segment begins among them; broadcast against
        the update, or K x K matrices.  None is 1.
      update: B of the shard's tokens, the state that they make from zeros.
      initial_state: state before the first token of the first shard, in the segment of this token.
      segment_ids_BT: ids of the shard's tokens; states do not pass where a segment begins.
      matrix: whether A is a matrix for each head.
      reverse: the arrays run backwards in time, so the last shard is the first one.

    Returns:
      The state, in the shape and dtype of `update`; on the first shard the initial state.
    """
    place = shards() - 1 - shard() if reverse else shard()

    def compose(a: Array | None, s: Array) -> Array:
        if a is None:
            return s
        # A state that does not pass is replaced before the product: 0 x NaN is NaN, and so is the
        # gradient of the factor 0.
        if matrix:
            s = jnp.where(jnp.any(a != 0, axis=(-2, -1), keepdims=True), s, 0)
            return jnp.matmul(a, s, precision=lax.Precision.HIGHEST)
        return a * jnp.where(a == 0, 0, s)

    # The initial state is part of the first shard's map, so all composed maps act on zeros.
    initial_state = initial_state.astype(update.dtype)
    update = update + jnp.where(place == 0, compose(transition, initial_state), 0)
    kept = None
    if segment_ids_BT is not None:
        kept_B = continues(segment_ids_BT, reverse=reverse)
        kept = kept_B.reshape(-1, *[1] * (update.ndim - 1))
        transition = jnp.ones((), update.dtype) if transition is None else transition
        transition = jnp.where(kept, transition, 0)
    state = _scan(transition, update, compose, -1 if reverse else 1)
    if kept is not None:
        state = jnp.where(kept, state, 0)
    return jnp.where(place == 0, initial_state, state)


def _packed(transition: Array | None, update: Array) -> Array:
    """Concatenates [B, A] to one message."""
    if transition is None:
        return update
    width = transition.shape[-1]
    transition = jnp.broadcast_to(transition, (*update.shape[:-1], width))
    return jnp.concatenate([update, transition], axis=-1)


def _unpacked(packed: Array, transition: Array | None, update: Array) -> tuple:
    width = update.shape[-1]
    return None if transition is None else packed[..., width:], packed[..., :width]


def _scan(transition, update, compose, step):
    """Composes the maps before this shard's in log2(D) rounds that double their number.

    A shard without a sender receives zeros, which is the right map: there is no token before it.
    """
    packed = _sent(_packed(transition, update), step)
    distance = 1
    while distance < shards() - 1:
        a, b = _unpacked(packed, transition, update)
        last = 2 * distance >= shards() - 1  # no shard needs its transition
        received = _sent(b if last else packed, step * distance)
        a_before, b_before = _unpacked(received, None if last else transition, update)
        b = compose(a, b_before) + b
        packed = b if last or a is None else _packed(compose(a, a_before), b)
        distance *= 2
    return packed[..., : update.shape[-1]]
