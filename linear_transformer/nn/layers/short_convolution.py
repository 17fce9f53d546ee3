"""Short causal depthwise convolution over the last few tokens."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.parameters import taps
from linear_transformer.ops import segments, sequence_parallel
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import PRNGKey, SegmentIds


def _current_token(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Initialises taps near the identity: 1 for the current token, noise of 0.1 for past tokens."""
    return 0.1 * jax.random.normal(key, shape, jnp.float32).at[0].set(1 / 0.1)


@jax.custom_vjp
def _scale(taps_D: Float[Array, " D"], x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Returns taps * x in fp32 or wider, and stores x as it is.

    The gradient of the taps is a matmul, 25 times faster in XLA on CPU.
    """
    return taps_D * x_BTD


def _scale_backward(residuals, dy_BTD):
    taps_D, x_BTD = residuals
    products = (dy_BTD * x_BTD).reshape(-1, x_BTD.shape[-1])
    ones = jnp.ones((1, products.shape[0]), products.dtype)
    return jnp.matmul(ones, products)[0], (taps_D * dy_BTD).astype(x_BTD.dtype)


_scale.defvjp(lambda taps_D, x_BTD: (_scale(taps_D, x_BTD), (taps_D, x_BTD)), _scale_backward)


class ShortConvolution(nnx.Module):
    """Depthwise convolution `y_t = sum_i w_i * x_{t-i}`, 0 <= i < size, within a segment.

    Linear attention is weak at precise local order; a few taps supply it (Fu et al. 2023, H3; Yang
    et al. 2024, GLA).  The conv state holds the last size - 1 inputs and their segments.
    """

    def __init__(self, features: int, size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if size < 2:
            raise ValueError(f"convolution is {size}; it must be at least 2")
        self.features = features
        self.size = size
        self.dtype = dtype
        weights = _current_token(rngs.params(), (size, features))
        # The features of several projections lie side by side: this axis cannot be sharded.
        self.taps = nnx.Param(weights, **taps(None, None))

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
        (y_BTD,), state = self.side_by_side((x_BTD,), state, segment_ids=segment_ids)
        return y_BTD, state

    def side_by_side(
        self,
        parts: Sequence[Float[Array, "B T _"]],
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
    ) -> tuple[tuple[Float[Array, "B T _"], ...], MixerState | None]:
        """Convolves features in several arrays; joined, they would cross the shards of heads."""
        past, time = self.size - 1, parts[0].shape[1]
        ends = np.cumsum([x.shape[-1] for x in parts])[:-1]
        ids = run = None
        if state is None:  # the past is zeros, or tokens of the previous shard
            last = jnp.concatenate([x[:, max(time - past, 0) :] for x in parts], axis=-1)
            before_BPD = sequence_parallel.halo(last, before=past)[:, :past]
            if segment_ids is not None:
                ids = sequence_parallel.halo(segment_ids, before=past)
        else:
            before_BPD = state["inputs"].astype(parts[0].dtype)
            if segment_ids is None:  # the tokens continue the last segment
                shape = (len(before_BPD), time)
                segment_ids = jnp.broadcast_to(state["segments"][:, -1:], shape)
            ids = jnp.concatenate([state["segments"], segment_ids], axis=1)
        if ids is not None:
            run = segments.segment_index(ids)
        taps = self.taps[...].astype(accumulation_dtype(*parts))
        outputs, inputs = [], []
        for taps_D, before, x_BTD in zip(
            jnp.split(taps, ends, axis=-1), jnp.split(before_BPD, ends, axis=-1), parts, strict=True
        ):
            inputs.append(jnp.concatenate([before, x_BTD], axis=1))
            y_BTD = _scale(taps_D[0], x_BTD)
            for lag in range(1, self.size):
                window = slice(past - lag, past - lag + time)
                term = _scale(taps_D[lag], inputs[-1][:, window])
                if run is not None:
                    term = jnp.where((run[:, window] == run[:, past:])[..., None], term, 0)
                y_BTD = y_BTD + term
            outputs.append(y_BTD.astype(x_BTD.dtype))
        if state is None or ids is None:
            return tuple(outputs), None
        return tuple(outputs), {
            "inputs": jnp.concatenate([x[:, time:] for x in inputs], axis=-1).astype(self.dtype),
            "segments": ids[:, time:],
        }


def silu_convolution(
    convolution: ShortConvolution,
    bias_D: nnx.Param,
    parts: Sequence[Float[Array, "B T _"]],
    past: MixerState | None,
    segment_ids: SegmentIds | None,
) -> tuple[tuple[Float[Array, "B T _"], ...], MixerState | None]:
    """Applies silu(convolution + bias) to features in several arrays, as in Mamba."""
    parts, past = convolution.side_by_side(parts, past, segment_ids=segment_ids)
    ends = np.cumsum([x.shape[-1] for x in parts])[:-1]
    biases = jnp.split(bias_D[...].astype(accumulation_dtype(*parts)), ends)
    return tuple(
        jax.nn.silu(x + b).astype(x.dtype) for x, b in zip(parts, biases, strict=True)
    ), past
