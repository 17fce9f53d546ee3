"""Token shift of RWKV: the previous token as a second input of a layer."""

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.ops import segments, sequence_parallel
from linear_transformer.types import Activations, SegmentIds


class TokenShift(nnx.Module):
    """Shift `y_t = x_{t-1}`, 0 at the start of a segment; the state holds the last input."""

    def __init__(self, features: int, *, dtype: jnp.dtype):
        self.features = features
        self.dtype = dtype

    def init_state(self, batch_size: int) -> MixerState:
        return {
            "input": jnp.zeros((batch_size, self.features), self.dtype),
            "segment": jnp.zeros((batch_size,), jnp.int32),
        }

    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
    ) -> tuple[Activations, MixerState | None]:
        if 0 in x_BTD.shape[:2]:
            return x_BTD, state
        if state is None:
            y_BTD = sequence_parallel.halo(x_BTD, before=1)[:, :-1]
            if segment_ids is not None:
                before_BT = sequence_parallel.halo(segment_ids, before=1)[:, :-1]
                y_BTD = jnp.where((before_BT == segment_ids)[..., None], y_BTD, 0)
            return y_BTD, None
        first_BD = state["input"].astype(x_BTD.dtype)
        if segment_ids is not None:
            kept_B = segments.continues(state["segment"], segment_ids)
            first_BD = jnp.where(kept_B[:, None], first_BD, 0)
        y_BTD = jnp.concatenate([first_BD[:, None], x_BTD[:, :-1]], axis=1)
        if segment_ids is not None:
            y_BTD = jnp.where(segments.starts(segment_ids)[..., None], 0, y_BTD)
        last_B = state["segment"] if segment_ids is None else segment_ids[:, -1]
        return y_BTD, {"input": x_BTD[:, -1].astype(self.dtype), "segment": last_B}
