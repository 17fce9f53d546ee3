"""A sequence that is spread over devices: what one shard has to know of the others.

Inside `jax.shard_map` with a manual mesh axis "sequence", each of D shards holds T of the D T
consecutive tokens of its rows.  The operations of this package find that axis by themselves and
compute what one device would, outputs and gradients alike; without it nothing here communicates.

A recurrence is a composition of affine maps S -> A S + B.  A shard needs the map of its own tokens
and the state that enters it, which is all maps before it composed.  That takes 1 + log2(D) messages
of one map, O(K V) numbers a head whatever T, by a prefix scan (Hillis and Steele 1986, "Data
parallel algorithms"), or one gathering of all D maps.
"""

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
EXCHANGES = ("scan", "gather")
_Arrays = TypeVar("_Arrays", bound=tuple[Array | None, ...])

# How maps are exchanged: "scan" sends 1 + log2(D) maps one after the other, "gather" D at once.
exchange = jax.make_user_context("scan")


def shards() -> int:
    """Devices that a row is spread over; 1 outside of `jax.shard_map` over the axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1


def shard() -> Int[Array, ""]:
    """The number of this shard."""
    return lax.axis_index(AXIS) if shards() > 1 else jnp.zeros((), jnp.int32)


def offset(time: int) -> Int[Array, ""]:
    """Place in the row of the first of this shard's `time` tokens."""
    return shard() * time


def places(time: int) -> Int[Array, " T"]:
    """Those of this shard's `time` tokens in the row."""
    return offset(time) + jnp.arange(time)


def in_row(x: Array, length: int) -> Bool[Array, "*rows T"] | None:
    """Which tokens are no padding behind a row of `length`; None where there is none.

    Args:
      x: an array whose last axis is the shard's tokens.
    """
    time = x.shape[-1]
    if shards() * time <= length:
        return None
    return jnp.broadcast_to(places(time) < length, x.shape)


def delayed(x_BT: Array, first_Bx: Array) -> Array:
    """(B, T, ...): the token before each of the row's, and `first_Bx` before the first one."""
    if shards() > 1:
        before_Bx = _sent(x_BT[:, -1:], 1)
        first_Bx = jnp.where(shard() == 0, first_Bx, before_Bx)
    return jnp.concatenate([first_Bx, x_BT[:, :-1]], axis=1)


def total(x: Array) -> Array:
    """The sum over all shards."""
    return lax.psum(x, AXIS) if shards() > 1 else x


def largest(x: Array) -> Array:
    """The maximum over all shards, without gradient."""
    x = lax.stop_gradient(x)
    return lax.pmax(x, AXIS) if shards() > 1 else x


def gathered(x_BT: Array) -> Array:
    """The tokens of all shards, in order, along axis 1."""
    return lax.all_gather(x_BT, AXIS, axis=1, tiled=True) if shards() > 1 else x_BT


def own(x_BT: Array) -> Array:
    """This shard's tokens of `gathered`."""
    time = x_BT.shape[1] // shards()
    return lax.dynamic_slice_in_dim(x_BT, offset(time), time, axis=1)


def own_key(key: PRNGKey | None) -> PRNGKey | None:
    """A key for this shard's tokens, where all shards have the same one."""
    return key if key is None or shards() == 1 else jax.random.fold_in(key, shard())


def on_whole_rows(function: Callable[..., Array], *arrays: Array | None) -> Array:
    """This shard's tokens of `function`, which each shard computes of the tokens of all.

    For what no exchange of less would be exact for.

    Args:
      function: of arrays (B, T, ...), to one (B, T, ...); it must not ask for other shards.
      arrays: of the shard's tokens, or None.
    """
    if shards() == 1:
        return function(*arrays)
    return own(function(*(None if x is None else gathered(x) for x in arrays)))


def of_last(x: Array, *, reverse: bool = False) -> Array:
    """The value on the last shard (the first one if `reverse`), on all of them."""
    if shards() == 1:
        return x
    last = 0 if reverse else shards() - 1
    return lax.psum(jnp.where(shard() == last, x, jnp.zeros_like(x)), AXIS)


def _sent(x: Array, distance: int) -> Array:
    """What the shard `distance` before this one has; zeros where there is none."""
    count = shards()
    pairs = [(i, i + distance) for i in range(count) if 0 <= i + distance < count]
    return lax.ppermute(x, AXIS, pairs)


def halo(x_BT: Array, *, before: int = 0, after: int = 0) -> Array:
    """(B, before + T + after, ...): the shard's tokens with those around them, zeros at the ends.

    As many neighbours send as it takes.
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
    reached = time * (count - 1)  # tokens of the others on one side
    return jnp.concatenate(
        [zeros(max(before - reached, 0)), *parts, zeros(max(after - reached, 0))], axis=1
    )


def blocks(
    arrays: tuple[Array | None, ...], size: int, *, after: bool
) -> tuple[tuple[Array | None, ...], Int[Array, ""]]:
    """Whole blocks of the row, cut by `size` from its start, that hold this shard's tokens.

    Args:
      arrays: (B, T, ...) of the shard's tokens, or None.
      size: tokens of a block.
      after: whether the tokens of other shards behind these are wanted too.

    Returns:
      (B, L, ...) each, with zeros where there is no token, and the place in them of the shard's
      first one.
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
    """The tokens that a shard's queries may see, and their places in the row.

    Args:
      arrays: (B, T, ...) of the shard's tokens, or None.
      window: tokens that a query sees, its own the last; None is all of the row.

    Returns:
      The arrays of S tokens; places before the row are negative.
    """
    time = next(x for x in arrays if x is not None).shape[1]
    if window is None:
        places_S = jnp.arange(shards() * time)
        return jax.tree.map(gathered, arrays), places_S
    before = window - 1
    places_S = offset(time) - before + jnp.arange(before + time)
    return jax.tree.map(functools.partial(halo, before=before), arrays), places_S


def continues(segment_ids_BT: SegmentIds, *, reverse: bool = False) -> Bool[Array, " B"]:
    """Whether the shard's first token is in the segment of the last one of the shard before.

    With `reverse`, of arrays that run backwards in time, the shard before is the one that follows.
    """
    before_B = _sent(segment_ids_BT[:, -1], -1 if reverse else 1)
    return before_B == segment_ids_BT[:, 0]


def run_index(segment_ids_BT: SegmentIds) -> Int[Array, "B T"]:
    """`segments.run_index` of the whole row."""
    run_BT = segments.run_index(segment_ids_BT)
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
    """What passes from shard to shard where a segment goes on: `combine(entering, own)`.

    Args:
      combine: associative; gets what enters a shard, and the shard's own value.
      own: of the shard's part of the segment that leaves it, its last one.
      initial: enters the first shard.
      segment_ids_BT: of the shard's tokens.
      reverse: the tokens run backwards in time, so the last shard is the first one.

    Returns:
      The value that enters this shard, and whether it does: its first token may begin a segment.
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
    """The state before the first token of this shard: S -> A S + B of all shards before it.

    Args:
      transition: A of the shard's tokens, 0 where a segment begins among them; broadcast against
        the update, or K x K matrices.  None is 1.
      update: B of the shard's tokens, the state that they make of nothing.
      initial_state: before the first token of the first shard, in the same segment as this token.
      segment_ids_BT: of the shard's tokens; states do not pass where a segment begins.
      matrix: whether A is a matrix for each head.
      reverse: the arrays run backwards in time, so the last shard is the first one.

    Returns:
      As `update`; on the first shard the initial state.
    """
    place = shards() - 1 - shard() if reverse else shard()

    def compose(a: Array | None, s: Array) -> Array:
        if a is None:
            return s
        # What nothing passes through is replaced before the product: 0 x NaN is NaN, and so is the
        # gradient of a factor of 0 beside a NaN.
        if matrix:
            s = jnp.where(jnp.any(a != 0, axis=(-2, -1), keepdims=True), s, 0)
            return jnp.matmul(a, s, precision=lax.Precision.HIGHEST)
        return a * jnp.where(a == 0, 0, s)

    # The first shard's map is told what it is applied to; what comes after it is a constant.
    initial_state = initial_state.astype(update.dtype)
    update = update + jnp.where(place == 0, compose(transition, initial_state), 0)
    kept = None
    if segment_ids_BT is not None:
        kept_B = continues(segment_ids_BT, reverse=reverse)
        kept = kept_B.reshape(-1, *[1] * (update.ndim - 1))
        transition = jnp.ones((), update.dtype) if transition is None else transition
        transition = jnp.where(kept, transition, 0)
    before = _gather if exchange.value == "gather" else _scan
    state = before(transition, update, compose, -1 if reverse else 1, place)
    if kept is not None:
        state = jnp.where(kept, state, 0)
    return jnp.where(place == 0, initial_state, state)


def _packed(transition: Array | None, update: Array) -> Array:
    """[B, A], to be sent as one message."""
    if transition is None:
        return update
    width = transition.shape[-1]
    transition = jnp.broadcast_to(transition, (*update.shape[:-1], width))
    return jnp.concatenate([update, transition], axis=-1)


def _unpacked(packed: Array, transition: Array | None, update: Array) -> tuple:
    width = update.shape[-1]
    return None if transition is None else packed[..., width:], packed[..., :width]


def _scan(transition, update, compose, step, place):
    """The maps before this shard's, composed in log2(D) rounds that double their number.

    Who has no sender gets zeros, which is the right map: there is nothing before.
    """
    del place
    packed = _sent(_packed(transition, update), step)
    distance = 1
    while distance < shards() - 1:
        a, b = _unpacked(packed, transition, update)
        last = 2 * distance >= shards() - 1  # whose transition nobody needs
        received = _sent(b if last else packed, step * distance)
        a_before, b_before = _unpacked(received, None if last else transition, update)
        b = compose(a, b_before) + b
        packed = b if last or a is None else _packed(compose(a, a_before), b)
        distance *= 2
    return packed[..., : update.shape[-1]]


def _gather(transition, update, compose, step, place):
    """All maps at once, composed by each shard for itself."""
    maps = lax.all_gather(_packed(transition, update), AXIS)
    state = jnp.zeros_like(update)
    for n in range(shards() - 1):
        a, b = _unpacked(maps[n if step > 0 else -1 - n], transition, update)
        state = jnp.where(n < place, compose(a, state) + b, state)
    return state
