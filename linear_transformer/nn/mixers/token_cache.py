"""Cache of the last tokens, newest last, for mixers that attend to the keys of past tokens.

The state is a dict of arrays (B, M, ...) for M slots, with the index of each slot's segment in its
sequence ("runs"), the number of tokens seen so far ("length"), and id and index of the last token's
segment ("segment", "run").  Ids may repeat, and a sum over all slots for each token would be slow.
Slots are filled from the end, so the first ones may be empty.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.ops import segments
from linear_transformer.types import SegmentIds


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
