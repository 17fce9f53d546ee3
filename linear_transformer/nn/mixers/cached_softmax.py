"""Base class of softmax attention with a cache of keys and values, or over a sliding window."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.cached_attention import CachedAttention
from linear_transformer.ops.forgetting import difference, log_sums
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
        query_sums = last_sum = None
        if log_forget is not None:
            run_BT, _ = token_cache.count(state, q.shape[1], segment_ids)
            old_sums, query_sums, last_sum = _log_sums(state, log_forget, run_BT)
            state, new = state | {"log_decay": old_sums}, new | {"log_decay": query_sums}
        window = self.window is not None
        held, state = token_cache.write(state, new, segment_ids, window=window)
        if last_sum is not None:
            state["log_decay"] = difference(_pair(last_sum), _pair(state["log_decay"]))
        o = self._attend_to_keys(
            q,
            held.arrays["keys"],
            held.arrays["values"],
            query_log_sums_BTHX=query_sums,
            key_log_sums_BSHX=held.arrays.get("log_decay"),
            **held.where,
        )
        return o, state


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
