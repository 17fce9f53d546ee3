"""Base class of softmax attention with a cache of keys and values, or over a sliding window."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.cached_attention import CachedAttention
from linear_transformer.ops.forgetting import difference, log_sums
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.types import Outputs, Queries, SegmentIds


class CachedSoftmax(CachedAttention):
    """Softmax attention to the tokens of a cache.

    A subclass calls `_attend`, and may override `_attend_to_row` and `_attend_to_keys`.  The cache
    is a ring: a new token takes the slot of the oldest one, and no other slot changes.

    Attributes:
      key_value_heads: heads of the keys and values in the state.
      form: see `ops.softmax.softmax_attention`.
      sinks: a score for each head, see `ops.softmax`; None for no sinks.
    """

    key_value_heads: int
    form: str = "auto"
    sinks: nnx.Param | None = None

    @property
    def slots(self) -> int:
        """Number of keys in the state: the capacity, or the window."""
        return self.cache_capacity if self.window is None else self.window

    @property
    def _options(self) -> dict[str, Any]:
        """Arguments of `softmax_attention` that do not depend on the tokens."""
        sinks = None if self.sinks is None else self.sinks[...]
        return {"window": self.window, "sinks_H": sinks, "form": self.form}

    def _init_state(self, batch_size):
        shape = (self.key_value_heads, self.key_width)
        features = {"keys": shape, "values": shape}
        return token_cache.init_cache(batch_size, self.slots, features, self.dtype)

    def _attend(
        self,
        q_BTHK: Queries,
        k_BTJK: Float[Array, "B T J K"],
        v_BTJK: Float[Array, "B T J K"],
        state: MixerState | None,
        segment_ids_BT: SegmentIds | None,
        log_forget_BTH: Float[Array, "B T H"] | None = None,
    ) -> tuple[Outputs, MixerState | None]:
        """Attends from new tokens to the cached and the new tokens.

        Args:
          log_forget_BTH: log forget gates of the new tokens, see `ops.forgetting`; None is none.

        Returns:
          The outputs, and the next state; None if there is no state.
        """
        if state is not None:
            new = {"keys": k_BTJK, "values": v_BTJK}
            return self._attend_to_cache(q_BTHK, new, segment_ids_BT, state, log_forget_BTH)
        sums = None if log_forget_BTH is None else log_sums(log_forget_BTH, segment_ids_BT)
        gates = {"query_log_sums_BTHX": sums, "key_log_sums_BSHX": sums}
        return self._attend_to_row(q_BTHK, k_BTJK, v_BTJK, segment_ids_BT, **gates), None

    def _attend_to_row(self, q, k, v, segment_ids, **gates) -> Outputs:
        """Attends among the tokens of one call without a state."""
        return softmax_attention(
            q,
            k,
            v,
            direction=self.direction,
            segment_ids_BT=segment_ids,
            **gates,
            **self._options,
        )

    def _attend_to_keys(self, q, k, v, **where: Any) -> Outputs:
        """Attends to held keys; `where` are the arguments that say who sees what."""
        return softmax_attention(q, k, v, **where, **self._options)

    def _attend_to_cache(self, q, new, segment_ids, state, log_forget):
        time = q.shape[1]
        positions_BT = state["length"][:, None] + jnp.arange(time)
        run_BT, counts = token_cache.count(state, time, segment_ids)
        query_sums = last_sum = None
        if log_forget is not None:
            old_sums, query_sums, last_sum = _log_sums(state, log_forget, run_BT)
            state, new = state | {"log_decay": old_sums}, new | {"log_decay": query_sums}
        slots, new = self.slots, new | {"runs": run_BT}
        if time == 1 or self.window is None:
            place = jax.vmap(lambda cache, x, i: lax.dynamic_update_slice_in_dim(cache, x, i, 0))
            held = {
                name: place(state[name], x.astype(state[name].dtype), state["length"] % slots)
                for name, x in new.items()
            }
            key_positions = _held_positions(counts["length"], slots)
            state = held | counts
        else:  # the first new tokens also see cached tokens which the last ones overwrite
            before, after = (_held_positions(x["length"], slots) for x in (state, counts))
            new = {name: x.astype(state[name].dtype) for name, x in new.items()}
            held = {name: jnp.concatenate([state[name], x], axis=1) for name, x in new.items()}
            key_positions = jnp.concatenate([before, positions_BT], axis=1)
            nth_BM = after - state["length"][:, None]  # of the new tokens; below 0 is a cached one
            state = {name: _where_new(nth_BM, x, state[name]) for name, x in new.items()} | counts
        run_BS = held["runs"]
        if last_sum is not None:
            state["log_decay"] = difference(_pair(last_sum), _pair(state["log_decay"]))
        o = self._attend_to_keys(
            q,
            held["keys"],
            held["values"],
            segment_ids_BT=run_BT,
            key_segment_ids_BS=run_BS,
            query_positions_BT=positions_BT,
            key_positions_BS=key_positions,
            query_log_sums_BTHX=query_sums,
            key_log_sums_BSHX=held.get("log_decay"),
        )
        return o, state


def _held_positions(length_B, slots):
    """Returns the position of the token in each slot; -1 for an empty slot.

    Token t is in slot t modulo the number of slots.
    """
    last_BM = length_B[:, None] - 1
    return jnp.maximum(last_BM - (last_BM - jnp.arange(slots)) % slots, -1)


def _where_new(nth_BM, new_BT, old_BM):
    """Takes the nth of the new tokens, and the old one where n is below 0."""
    nth = nth_BM.reshape(*nth_BM.shape, *[1] * (new_BT.ndim - 2))
    return jnp.where(nth >= 0, jnp.take_along_axis(new_BT, nth, axis=1, mode="clip"), old_BM)


def _log_sums(state, log_forget_BTH, run_BT):
    """Log sums of the cached tokens, of the new tokens, and of all tokens.

    The sums begin with a gate of 1 after the cached tokens, and end with one after the new tokens.
    """
    run = jnp.concatenate([state["run"][:, None], run_BT, run_BT[:, -1:]], axis=1)
    sums = log_sums(jnp.pad(log_forget_BTH, ((0, 0), (1, 1), (0, 0))), run)
    high, low = _pair(sums[:, :1])
    high = high - state["log_decay"]
    old = jnp.stack([high, jnp.broadcast_to(low, high.shape)], axis=-1)
    return old, sums[:, 1:-1], sums[:, -1:]


def _pair(sums: Float[Array, "B T H X"]) -> tuple[Array, Array]:
    return sums[..., 0], sums[..., 1]
