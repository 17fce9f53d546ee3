"""Cache of the last tokens, newest last, for mixers that attend to the keys of past tokens.

The state is a dict of arrays (B, M, ...) for M slots, with the segment of each slot and the number
of tokens seen so far.  Slots are filled from the end, so the first ones may be empty.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.types import SegmentIds


def init_cache(
    batch_size: int, slots: int, features: dict[str, tuple[int, ...]], dtype: jnp.dtype
) -> MixerState:
    """Returns an empty cache: arrays (B, slots, *shape) for each name and shape in `features`."""
    arrays = {n: jnp.zeros((batch_size, slots, *shape), dtype) for n, shape in features.items()}
    segments = jnp.zeros((batch_size, slots), jnp.int32)
    return arrays | {"segments": segments, "length": jnp.zeros((batch_size,), jnp.int32)}


def extend(
    state: MixerState, new: dict[str, Array], segment_ids: SegmentIds | None
) -> tuple[dict[str, Array], Int[Array, "B S"], Bool[Array, "B S"], MixerState]:
    """Appends T tokens to a cache of M slots; S = M + T.

    Args:
      state: the cache.
      new: arrays (B, T, ...) of the new tokens by name.
      segment_ids: segments of the new tokens; None continues the segment of the last token.

    Returns:
      The arrays of all S slots, their segments, a mask of the filled slots, and the next state.
    """
    slots = state["segments"].shape[1]
    time = next(iter(new.values())).shape[1]
    if segment_ids is None:
        segment_ids = jnp.broadcast_to(state["segments"][:, -1:], (len(state["length"]), time))
    held = {
        name: jnp.concatenate([state[name], x.astype(state[name].dtype)], axis=1)
        for name, x in (new | {"segments": segment_ids}).items()
    }
    filled_BS = jnp.arange(slots + time) >= slots - state["length"][:, None]
    kept = {name: x[:, time:] for name, x in held.items()}
    segments_BS = held.pop("segments")
    return held, segments_BS, filled_BS, kept | {"length": state["length"] + time}
