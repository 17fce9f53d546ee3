"""Residual connections of the stream x and the output y of a sub-layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.types import Activations, PRNGKey


class SumResidual(nnx.Module):
    """Sum `x + y`."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del width, dtype, rngs

    def __call__(self, x_BTD: Activations, y_BTD: Activations) -> Activations:
        return x_BTD + y_BTD


def _bias(key: PRNGKey, shape: tuple[int, ...]) -> jax.Array:
    return 1 + jax.random.normal(key, shape, jnp.float32)


class GRUResidual(nnx.Module):
    """GRU gate of GTrXL (Parisotto et al. 2020, section 3.2), with the stream as its state.

        r = sigmoid(W_r y + U_r x)          z = sigmoid(W_z y + U_z x - b)
        h = tanh(W_h y + U_h (r * x))       g(x, y) = (1 - z) * x + z * h

    The bias b starts around 1, which keeps the gate near the identity at first.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        axes = ("embed", "feed_forward")
        options = {"axes": axes, "use_bias": False, "dtype": dtype, "rngs": rngs}
        self.from_output = Linear(width, 3 * width, **options)  # W_r, W_z, W_h
        self.from_stream = Linear(width, 2 * width, **options)  # U_r, U_z
        self.from_reset = Linear(width, width, **options)  # U_h
        self.bias = nnx.Param(_bias(rngs.params(), (width,)), **vector("feed_forward"))

    def __call__(self, x_BTD: Activations, y_BTD: Activations) -> Activations:
        output_r, output_z, output_h = jnp.split(self.from_output(y_BTD), 3, axis=-1)
        stream_r, stream_z = jnp.split(self.from_stream(x_BTD), 2, axis=-1)
        r = jax.nn.sigmoid(output_r + stream_r)
        z = jax.nn.sigmoid(output_z + stream_z - spread(self.bias[...], stream_z))
        h = jnp.tanh(output_h + self.from_reset(r * x_BTD))
        return (1 - z) * x_BTD + z * h


RESIDUALS = {"sum": SumResidual, "gru": GRUResidual}
