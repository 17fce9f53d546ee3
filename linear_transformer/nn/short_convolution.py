"""Short causal convolution: each feature mixes its own last few tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.mixer import MixerState
from linear_transformer.ops import sequence_parallel
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import PRNGKey, SegmentIds


def _current_token(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Starts close to the identity: the layer learns how much of the past it wants."""
    return 0.1 * jax.random.normal(key, shape, jnp.float32).at[0].set(1 / 0.1)


@jax.custom_vjp
def _scale(taps_D: Float[Array, " D"], x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """taps * x; the gradient of the taps is a matmul, which XLA on CPU sums 25 times faster."""
    return taps_D * x_BTD


def _scale_backward(residuals, dy_BTD):
    taps_D, x_BTD = residuals
    products = (dy_BTD * x_BTD).reshape(-1, x_BTD.shape[-1])
    ones = jnp.ones((1, products.shape[0]), products.dtype)
    wide = accumulation_dtype(products)
    dtaps_D = jnp.matmul(ones, products, preferred_element_type=wide)[0]
    return dtaps_D.astype(taps_D.dtype), taps_D * dy_BTD


_scale.defvjp(lambda taps_D, x_BTD: (_scale(taps_D, x_BTD), (taps_D, x_BTD)), _scale_backward)


class ShortConvolution(nnx.Module):
    """`y_t = sum_i w_i * x_{t-i}` for 0 <= i < size, feature by feature, within a segment.

    What a linear-attention layer lacks most is precise local order; a few taps supply it (Fu et al.
    2023, H3; Yang et al. 2024, GLA).  The state is the last size - 1 inputs.
    """

    def __init__(self, features: int, size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.features = features
        self.size = size
        self.dtype = dtype
        self.taps = nnx.Param(_current_token(rngs.params(), (size, features)))

    def init_state(self, batch_size: int) -> MixerState:
        past = self.size - 1
        return {
            "inputs": jnp.zeros((batch_size, past, self.features), self.dtype),
            "segments": jnp.zeros((batch_size, past), jnp.int32),
        }

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
    ) -> tuple[Float[Array, "B T D"], MixerState | None]:
        time = x_BTD.shape[1]
        if state is None:  # zeros come before a row, and the shard before before a shard
            arrays = (x_BTD, segment_ids)
            inputs, segments = (
                None if x is None else sequence_parallel.halo(x, before=self.size - 1)
                for x in arrays
            )
        else:
            if segment_ids is None:  # the last segment goes on
                segment_ids = jnp.broadcast_to(state["segments"][:, -1:], x_BTD.shape[:2])
            inputs = jnp.concatenate([state["inputs"].astype(x_BTD.dtype), x_BTD], axis=1)
            segments = jnp.concatenate([state["segments"], segment_ids], axis=1)
        taps = self.taps[...].astype(x_BTD.dtype)
        y_BTD = _scale(taps[0], x_BTD)
        for lag in range(1, self.size):
            window = slice(self.size - 1 - lag, self.size - 1 - lag + time)
            term = _scale(taps[lag], inputs[:, window])
            if segments is not None:
                term = jnp.where((segments[:, window] == segment_ids)[..., None], term, 0)
            y_BTD = y_BTD + term
        if state is None:
            return y_BTD, None
        return y_BTD, {
            "inputs": inputs[:, time:].astype(self.dtype),
            "segments": segments[:, time:],
        }
