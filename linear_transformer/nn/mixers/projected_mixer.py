"""Base class of mixers with projections of the input and of the output."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import Linear, split_heads
from linear_transformer.nn.mixers.base import Mixer, head_width
from linear_transformer.ops import checks
from linear_transformer.types import Activations


class LayerOptions(TypedDict, total=False):
    """Options of the layers of every mixer."""

    output_scale: float
    dtype: DTypeLike


class ProjectionOptions(LayerOptions, total=False):
    """Options of `ProjectedMixer`."""

    direction: str
    bias: bool


class ProjectedMixer(Mixer):
    """Projections of the input and of the output, for a subclass that mixes between them.

    The constructor of a subclass makes the layers, by `_linear` and `_output_layer`.

    Attributes:
      direction: "causal" or "bidirectional"; only a causal mixer has a state.
      bias: whether the projections have biases.
      output_scale: factor on the initial weights of the output layer.
      dtype: dtype of the activations.
    """

    directions: tuple[str, ...] = ("causal", "bidirectional")
    output: Linear

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        direction: str = "causal",
        bias: bool = True,
        output_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
    ):
        checks.choice("direction", direction, self.directions)
        self.width = width
        self.heads = heads
        self.direction = direction
        self.bias = bias
        self.output_scale = output_scale
        self.dtype = jnp.dtype(dtype)

    def _linear(self, features: int, rngs: nnx.Rngs, **options: Any) -> Linear:
        """Makes a projection of the input to the heads."""
        options = {"axes": ("embed", "heads"), "use_bias": self.bias} | options
        return Linear(self.width, features, dtype=self.dtype, rngs=rngs, **options)

    def _make_projections(self, rngs: nnx.Rngs) -> None:
        """Makes queries, keys and values that are as wide as the model."""
        self.key_width = head_width(self.width, self.heads)
        self.query, self.key, self.value = (self._linear(self.width, rngs) for _ in range(3))

    def _output_layer(self, rngs: nnx.Rngs, features: int | None = None, **options: Any) -> Linear:
        """Makes the projection of merged heads with `features`, by default the width."""
        init = nnx.initializers.variance_scaling(self.output_scale**2, "fan_in", "normal")
        return Linear(
            self.width if features is None else features,
            self.width,
            axes=("heads", "embed"),
            dtype=self.dtype,
            rngs=rngs,
            **{"use_bias": self.bias, "kernel_init": init} | options,
        )

    def _by_head(
        self, x_BTD: Activations, *layers: Callable[[Activations], Array]
    ) -> list[Float[Array, "B T H _"]]:
        """Applies layers to one input, and splits their outputs into heads."""
        return [split_heads(layer(x_BTD), self.heads) for layer in layers]
