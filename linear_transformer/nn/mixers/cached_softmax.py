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
from linear_transformer.ops.forgetting import log_sums
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.types import Outputs, Queries, SegmentIds


class CachedSoftmax(CachedAttention):
    """Softmax attention to the tokens of a cache.

    A subclass calls `_attend`, and may override `_attend_to_row` and `_attend_to_keys`.

    Attributes:
      key_value_heads: heads of the keys and values in the state.
      form: see `ops.softmax.softmax_attention`.
      sinks: a score for each head, see `ops.softmax`; None for no sinks.
    """

    key_value_heads: int
    form: str = "auto"
    sinks: nnx.Param | None = None

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
            if log_forget_BTH is not None:
                new["log_forget"] = log_forget_BTH
            return self._attend_to_cache(q_BTHK, new, segment_ids_BT, state)
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

    def _attend_to_cache(self, q, new, segment_ids, state):
        time = q.shape[1]
        positions_BT = state["length"][:, None] + jnp.arange(time)
        if self.window is None:  # slot i holds token i
            run_BT, counts = token_cache.count(state, time, segment_ids)
            place = jax.vmap(lambda cache, x, i: lax.dynamic_update_slice_in_dim(cache, x, i, 0))
            held = {
                name: place(state[name], x.astype(state[name].dtype), state["length"])
                for name, x in (new | {"runs": run_BT}).items()
            }
            slots_M = jnp.arange(self.slots)
            key_positions = jnp.where(slots_M < counts["length"][:, None], slots_M, -1)
            state = held | counts
            run_BS = held["runs"]
        else:  # the cached tokens, then the new tokens
            slots_M = jnp.arange(self.slots + time) - self.slots
            key_positions = jnp.maximum(state["length"][:, None] + slots_M, -1)
            held, run_BS, _, state = token_cache.extend(state, new, segment_ids)
            run_BT = run_BS[:, self.slots :]

        def of_queries(x_BS):
            if self.window is not None:
                return x_BS[:, self.slots :]
            places = positions_BT.reshape(*positions_BT.shape, *[1] * (x_BS.ndim - 2))
            return jnp.take_along_axis(x_BS, places, axis=1, mode="clip")

        sums = query_sums = None
        if "log_forget" in held:  # sums of the held gates alone stay small in a long sequence
            sums = log_sums(held["log_forget"], run_BS)
            query_sums = of_queries(sums)
        o = self._attend_to_keys(
            q,
            held["keys"],
            held["values"],
            segment_ids_BT=run_BT,
            key_segment_ids_BS=run_BS,
            query_positions_BT=positions_BT,
            key_positions_BS=key_positions,
            query_log_sums_BTHX=query_sums,
            key_log_sums_BSHX=sums,
        )
        return o, state
