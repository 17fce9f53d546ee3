"""Bidirectional LSTM layers (Graves, Mohamed and Hinton 2013), the recurrent speech baseline."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import Linear, flops_of_weights
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.non_finite import keep
from linear_transformer.types import KeyMask, PRNGKey


def _orthogonal_gates(key: PRNGKey, shape: tuple[int, int], dtype: Any) -> Array:
    """Returns an orthogonal matrix for each of the four gates, side by side."""
    init = nnx.initializers.orthogonal()
    gates = [init(k, (shape[0], shape[1] // 4), dtype) for k in jax.random.split(key, 4)]
    return jnp.concatenate(gates, axis=1)


class LSTM(nnx.Module):
    """LSTM layer in one direction, without peepholes:

        i, f, o = sigmoid(W x_t + U h_{t-1} + b)      g = tanh(W x_t + U h_{t-1} + b)
        c_t = f * c_{t-1} + i * g                     h_t = o * tanh(c_t)

    A masked token leaves c and h unchanged, and its output is 0.
    """

    def __init__(
        self, features: int, hidden: int, *, reverse: bool, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.hidden = hidden
        self.reverse = reverse
        # Every step needs all hidden features of the step before, so sharding them would cost an
        # exchange per token.
        options = {"axes": (None, None), "dtype": dtype, "rngs": rngs}
        self.input = Linear(features, 4 * hidden, **options)  # of i, f, g, o
        self.recurrent = Linear(
            hidden, 4 * hidden, use_bias=False, kernel_init=_orthogonal_gates, **options
        )

    def __call__(
        self, x_BTI: Float[Array, "B T I"], mask_BT: KeyMask | None = None
    ) -> Float[Array, "B T O"]:
        mask_BT = jnp.ones(x_BTI.shape[:2], bool) if mask_BT is None else mask_BT
        gates_TBG = jnp.moveaxis(self.input(keep(mask_BT, x_BTI)), 1, 0)
        kernel = self.recurrent.kernel[...].astype(gates_TBG.dtype)

        def step(carry, token):
            h, c = carry
            gates, mask = token
            i, f, g, o = jnp.split(gates + h @ kernel, 4, axis=-1)
            # The cell accumulates over the whole sequence, so it is kept in fp32.
            update = (jax.nn.sigmoid(i) * jnp.tanh(g)).astype(c.dtype)
            c_new = jax.nn.sigmoid(f).astype(c.dtype) * c + update
            h_new = jax.nn.sigmoid(o) * jnp.tanh(c_new).astype(h.dtype)
            mask = mask[:, None]
            carry = (jnp.where(mask, h_new, h), jnp.where(mask, c_new, c))
            return carry, jnp.where(mask, h_new, 0)

        h = jnp.zeros((x_BTI.shape[0], self.hidden), gates_TBG.dtype)
        c = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        tokens = (gates_TBG, jnp.moveaxis(mask_BT, 1, 0))
        _, h_TBO = lax.scan(step, (h, c), tokens, reverse=self.reverse)
        return jnp.moveaxis(h_TBO, 0, 1)


class BiLSTM(nnx.Module):
    """Stack of bidirectional LSTM layers, which concatenate the outputs of both directions.

    Attributes:
      hidden: units of each direction; outputs have twice as many features.
    """

    def __init__(
        self,
        features: int,
        hidden: int = 320,
        num_layers: int = 3,
        *,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.counts(hidden=hidden, num_layers=num_layers)
        self.hidden = hidden
        self.layers = nnx.List()
        for layer in range(num_layers):
            inputs = features if layer == 0 else 2 * hidden
            pair = [
                LSTM(inputs, hidden, reverse=reverse, dtype=jnp.dtype(dtype), rngs=rngs)
                for reverse in (False, True)
            ]
            self.layers.append(nnx.List(pair))
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        x_BTI: Float[Array, "B T I"],
        *,
        mask: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B T O"]:
        """Returns features (B, T, 2 hidden), which are 0 at padding.

        Args:
          x_BTI: input features.
          mask: False for padding, which changes no other output; None if there is no padding.
          dropout_key: turns on dropout between the layers.
        """
        # The recurrence is not linear, so shards cannot compose it: each one computes whole rows.
        run = functools.partial(self._whole_rows, dropout_key)
        return sequence_parallel.on_whole_rows(run, x_BTI, mask)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token in the forward pass; a multiply-add counts as two."""
        del context
        return flops_of_weights(self)

    def _whole_rows(self, dropout_key, x_BTI, mask):
        keys = [None] * len(self.layers)
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, len(self.layers))
        for n, (pair, key) in enumerate(zip(self.layers, keys, strict=True)):
            if n:
                x_BTI = self.dropout(x_BTI, deterministic=key is None, rngs=key)
            x_BTI = jnp.concatenate([lstm(x_BTI, mask) for lstm in pair], axis=-1)
        return x_BTI
