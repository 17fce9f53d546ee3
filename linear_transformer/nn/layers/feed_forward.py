"""Position-wise feed-forward layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.logical_axes import named
from linear_transformer.types import Activations, PRNGKey

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "identity": lambda x: x,
}


class FeedForward(nnx.Module):
    """Feed-forward `W2 act(W1 x)`, or gated: `W2 (act(W1 x) * W3 x)` (Shazeer 2020, GLU)."""

    flops_beyond_weights = 0

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        gated: bool,
        activation: str,
        dropout: float,
        output_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        axes = ("embed", "feed_forward")
        self.up = Linear(width, hidden, axes=axes, dtype=dtype, rngs=rngs)
        self.gate = Linear(width, hidden, axes=axes, dtype=dtype, rngs=rngs) if gated else None
        init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "normal")
        self.down = Linear(hidden, width, axes=axes[::-1], dtype=dtype, kernel_init=init, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x_BTD: Activations, dropout_key: PRNGKey | None = None) -> Activations:
        h_BTF = ACTIVATIONS[self.activation](self.up(x_BTD))
        if self.gate is not None:
            h_BTF = h_BTF * self.gate(x_BTD)
        h_BTF = named(h_BTF, "rows", "time", "feed_forward")
        h_BTF = self.dropout(h_BTF, deterministic=dropout_key is None, rngs=dropout_key)
        return self.down(h_BTF)
