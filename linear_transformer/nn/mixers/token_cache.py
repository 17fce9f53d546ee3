"""Caches of the last tokens, for mixers that attend to the keys of past tokens.

The state is a dict of arrays (B, M, ...) for M slots, with the index of each slot's segment in its
sequence ("runs"), the number of tokens seen so far ("length"), and id and index of the last token's
segment ("segment", "run").  Ids may repeat, and a sum over all slots for each token would be slow.

`write` makes a ring: token t is in slot t modulo M, and a new token changes no other slot.
`extend` keeps the newest token last and copies all slots.  Empty slots are possible in both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.ops import segments
from linear_transformer.types import SegmentIds


class Held(NamedTuple):
    """S held tokens that T new tokens may see, in any order.

    Attributes:
      arrays: arrays (B, S, ...) by name.
      run_BT, run_BS: indices of the segments of the new and the held tokens.
      positions_BT, positions_BS: their positions; -1 for an empty slot.
    """

    arrays: dict[str, Array]
    run_BT: Int[Array, "B T"]
    run_BS: Int[Array, "B S"]
    positions_BT: Int[Array, "B T"]
    positions_BS: Int[Array, "B S"]

    @property
    def where(self) -> dict[str, Any]:
        """The arguments of an attention, such as `ops.softmax`, that say who sees what."""
        return {
            "segment_ids_BT": self.run_BT,
            "key_segment_ids_BS": self.run_BS,
            "query_positions_BT": self.positions_BT,
            "key_positions_BS": self.positions_BS,
        }


def init_cache(
    batch_size: int, slots: int, features: dict[str, tuple[int, ...]], dtype: jnp.dtype
) -> MixerState:
    """Returns an empty cache: arrays (B, slots, *shape) for each name and shape in `features`."""
    arrays = {n: jnp.zeros((batch_size, slots, *shape), dtype) for n, shape in features.items()}
    counts = {name: jnp.zeros((batch_size,), jnp.int32) for name in ("length", "segment", "run")}
    return arrays | {"runs": jnp.zeros((batch_size, slots), jnp.int32)} | counts


def count(
    state: MixerState, time: int, segment_ids: SegmentIds | None
) -> tuple[Int[Array, "B T"], MixerState]:
    """Returns the segment indices of `time` new tokens, and the next counts of the state."""
    if segment_ids is None:
        segment_ids = jnp.broadcast_to(state["segment"][:, None], (len(state["segment"]), time))
    run_BT = segments.next_index(state["run"], state["segment"], segment_ids)
    counts = {"length": state["length"] + time, "segment": segment_ids[:, -1], "run": run_BT[:, -1]}
    return run_BT, counts


def extend(
    state: MixerState, new: dict[str, Array], segment_ids: SegmentIds | None
) -> tuple[dict[str, Array], Int[Array, "B S"], Bool[Array, "B S"], MixerState]:
    """Appends T tokens to a cache of M slots; S = M + T.

    Args:
      state: the cache.
      new: arrays (B, T, ...) of the new tokens by name.
      segment_ids: segments of the new tokens; None continues the segment of the last token.

    Returns:
      The arrays of all S slots, the indices of their segments, a mask of the filled slots, and the
      next state.
    """
    slots = state["runs"].shape[1]
    time = next(iter(new.values())).shape[1]
    run_BT, counts = count(state, time, segment_ids)
    held = {
        name: jnp.concatenate([state[name], x.astype(state[name].dtype)], axis=1)
        for name, x in (new | {"runs": run_BT}).items()
    }
    filled_BS = jnp.arange(slots + time) >= slots - state["length"][:, None]
    kept = {name: x[:, time:] for name, x in held.items()}
    run_BS = held.pop("runs")
    return held, run_BS, filled_BS, kept | counts


def write(
    state: MixerState, new: dict[str, Array], segment_ids: SegmentIds | None, *, window: bool
) -> tuple[Held, MixerState]:
    """Writes T tokens to a ring of M slots.

    Args:
      state: the ring.
      new: arrays (B, T, ...) of the new tokens by name.
      segment_ids: segments of the new tokens; None continues the segment of the last token.
      window: whether every new token needs the M - 1 tokens before it, also those that later new
        tokens replace; then S = T + M for T > 1.  Otherwise the call first drops the tokens that
        the ring cannot hold beside the new ones, and S = max(T, M).

    Returns:
      The held tokens, the new ones among them, and the next state.
    """
    slots, time = state["runs"].shape[1], next(iter(new.values())).shape[1]
    positions_BT = state["length"][:, None] + jnp.arange(time)
    run_BT, counts = count(state, time, segment_ids)
    new = {name: x.astype(state[name].dtype) for name, x in (new | {"runs": run_BT}).items()}
    if time == 1:
        place = jax.vmap(lambda ring, x, i: lax.dynamic_update_slice_in_dim(ring, x, i, 0))
        rings = {name: place(state[name], x, state["length"] % slots) for name, x in new.items()}
    else:
        nth_BM = _positions(counts["length"], slots) - state["length"][:, None]
        rings = {name: _where_new(nth_BM, x, state[name]) for name, x in new.items()}
    positions_BS = _positions(counts["length"], slots)
    held = dict(rings)
    if time > 1 and window:
        held = {name: jnp.concatenate([state[name], x], axis=1) for name, x in new.items()}
        before = _positions(state["length"], slots)
        positions_BS = jnp.concatenate([before, positions_BT], axis=1)
    elif time > slots:
        held, positions_BS = dict(new), positions_BT
    run_BS = held.pop("runs")
    return Held(held, run_BT, run_BS, positions_BT, positions_BS), rings | counts


def in_order(held: Held) -> Held:
    """Sorts the held tokens by position; empty slots come first."""
    order_BS = jnp.argsort(held.positions_BS, axis=1)

    def sort(x_BS):
        order = order_BS.reshape(*order_BS.shape, *[1] * (x_BS.ndim - 2))
        return jnp.take_along_axis(x_BS, order, axis=1)

    arrays = {name: sort(x) for name, x in held.arrays.items()}
    return held._replace(
        arrays=arrays, run_BS=sort(held.run_BS), positions_BS=sort(held.positions_BS)
    )


def _positions(length_B: Int[Array, " B"], slots: int) -> Int[Array, "B M"]:
    """Returns the position of the token in each slot of a ring; -1 for an empty slot."""
    last_BM = length_B[:, None] - 1
    return jnp.maximum(last_BM - (last_BM - jnp.arange(slots)) % slots, -1)


def _where_new(nth_BM: Int[Array, "B M"], new_BT: Array, old_BM: Array) -> Array:
    """Takes the nth of the new tokens, and the old one where n is below 0."""
    nth = nth_BM.reshape(*nth_BM.shape, *[1] * (new_BT.ndim - 2))
    return jnp.where(nth >= 0, jnp.take_along_axis(new_BT, nth, axis=1, mode="clip"), old_BM)
