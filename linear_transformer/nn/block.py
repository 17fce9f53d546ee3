"""Residual block of a mixer and a feed-forward, each with a norm."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.feed_forward import FeedForward
from linear_transformer.nn.layers.norms import apply_norm, make_stream_norm
from linear_transformer.nn.layers.product_key_memory import ProductKeyMemory
from linear_transformer.nn.layers.residuals import RESIDUALS
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers.base import Mixer, MixerState, Places
from linear_transformer.types import Activations, PRNGKey


class BlockInputs(Places, total=False):
    """Arguments of a block that are the same for all blocks of a stack."""

    memory_BTD: Activations | None


class Block(nnx.Module):
    """Residual block: pre-norm `x + f(norm(x))` or post-norm `norm(x + f(x))`.

    f is the mixer first and the feed-forward second.  Post-norm is the block of Vaswani et al. 2017
    and Katharopoulos et al. 2020 (equation 1).

    Attributes:
      feed_forward: feed-forward layer, or a memory in its place; None for mixers that include it
        (gated attention units).
      residual: residual connection of the sub-layers, a name in `nn.layers.residuals.RESIDUALS`.
      memory: whether a position-aligned memory joins the stream between mixer and feed-forward,
        with a norm and a residual connection (Hadjeres & Crestel 2021); pre-norm only.
    """

    def __init__(
        self,
        mixer: Mixer,
        feed_forward: FeedForward | ProductKeyMemory | None,
        *,
        width: int,
        norm: str,
        norm_position: str,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        residual: str = "sum",
        memory: bool = False,
    ):
        def sub_layer():
            residual_layer = RESIDUALS[residual](width, dtype=dtype, rngs=rngs)
            return make_stream_norm(norm, width, dtype, rngs), residual_layer

        self.mixer = mixer
        self.feed_forward = feed_forward
        self.norm_position = norm_position
        self.mixer_norm, self.mixer_residual = sub_layer()
        if memory:
            self.memory_norm, self.memory_residual = sub_layer()
        if feed_forward is not None:
            self.feed_forward_norm, self.feed_forward_residual = sub_layer()
        self.dropout = nnx.Dropout(dropout)

    def flops_beyond_weights(self, context: int) -> int:
        """FLOPs of one token besides its product with each weight; see `Mixer.flops_per_token`."""
        flops = self.mixer.flops_per_token(context)
        return (
            flops if self.feed_forward is None else flops + self.feed_forward.flops_beyond_weights
        )

    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        memory_BTD: Activations | None = None,
        dropout_key: PRNGKey | None = None,
        first_BTI: Float[Array, "B T I"] | None = None,
        **places: Unpack[Places],
    ) -> tuple[Activations, MixerState | None]:
        keys = [None] * 4 if dropout_key is None else jax.random.split(dropout_key, 4)
        pre = self.norm_position == "pre"

        def normed(norm: nnx.Module, x_BTD: Activations) -> Activations:
            return apply_norm(norm, x_BTD, training=dropout_key is not None)

        h_BTD = normed(self.mixer_norm, x_BTD) if pre else x_BTD
        values = {"first_BTI": first_BTI} if self.mixer.value_residual else {}
        h_BTD, state = self.mixer(h_BTD, state, **places, **values)
        x_BTD = self.mixer_residual(x_BTD, self._drop(h_BTD, keys[0]))
        if not pre:
            x_BTD = normed(self.mixer_norm, x_BTD)
        if memory_BTD is not None:
            h_BTD = self._drop(normed(self.memory_norm, memory_BTD), keys[1])
            x_BTD = self.memory_residual(x_BTD, h_BTD)
        if self.feed_forward is not None:
            h_BTD = self.feed_forward(
                normed(self.feed_forward_norm, x_BTD) if pre else x_BTD, keys[2]
            )
            x_BTD = self.feed_forward_residual(x_BTD, self._drop(h_BTD, keys[3]))
            if not pre:
                x_BTD = normed(self.feed_forward_norm, x_BTD)
        return x_BTD, state

    def first_values(
        self, x_BTD: Activations, state: MixerState | None, *, training: bool, **places
    ) -> Float[Array, "B T I"]:
        """Returns `Mixer.first_values` of this block."""
        if self.norm_position == "pre":
            x_BTD = apply_norm(self.mixer_norm, x_BTD, training=training)
        return self.mixer.first_values(x_BTD, state, **places)

    def _drop(self, x_BTD: Activations, key: PRNGKey | None) -> Activations:
        x_BTD = named(x_BTD, "rows", "time", None)
        return self.dropout(x_BTD, deterministic=key is None, rngs=key)
