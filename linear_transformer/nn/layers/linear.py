"""Dense layers on flattened rows."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn import parameters
from linear_transformer.nn.logical_axes import named


class Linear(nnx.Linear):
    """nnx.Linear applied to (rows, features).

    With 3-D inputs XLA contracts a weight gradient over two axes, which on CPU falls off its matmul
    path; one flattened axis keeps every product a plain matmul.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, ...],
        group: str = "matrix",
        **options: Any,
    ):
        """Makes kernel and bias.

        Args:
          in_features: width of the input.
          out_features: width of the output.
          axes: what the input and the output are, see `nn.parameters.Declaration`.
          group: of the kernel, see `nn.parameters.Declaration`.
          **options: other arguments of `nnx.Linear`.
        """
        super().__init__(
            in_features,
            out_features,
            kernel_metadata=parameters.kernel(*axes, group=group),
            bias_metadata=parameters.vector(axes[-1]),
            **options,
        )

    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


def flops_of_weights(module: nnx.Module) -> int:
    """Of a token that meets each weight once, multiply-adds counted as two.

    Weights are what declares `per_token`: kernels, and the taps of convolutions.
    """
    weights = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return sum(
        2 * x.size
        for path, x in weights
        if parameters.declaration(x, "/".join(map(str, path))).per_token
    )


def split_heads(x_BTD: Float[Array, "B T D"], heads: int) -> Float[Array, "B T H K"]:
    x_BTHK = x_BTD.reshape(*x_BTD.shape[:2], heads, x_BTD.shape[-1] // heads)
    return named(x_BTHK, "rows", "time", "heads", None)


def merge_heads(x_BTHV: Float[Array, "B T H V"]) -> Float[Array, "B T D"]:
    x_BTD = jnp.reshape(x_BTHV, (*x_BTHV.shape[:2], math.prod(x_BTHV.shape[2:])))
    return named(x_BTD, "rows", "time", "heads")
