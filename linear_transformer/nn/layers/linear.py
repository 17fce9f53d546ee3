"""Dense layers, their FLOPs, and the split of features into heads."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linear_transformer.nn import parameters
from linear_transformer.nn.logical_axes import named


class Linear(nnx.Linear):
    """`nnx.Linear` that flattens all axes of the input but the last into one.

    With 3-D inputs, the gradient of the kernel contracts two axes, for which XLA on CPU does not
    use its fast matmul; with one flattened axis every product is a plain matmul.  The gradient of
    the bias is a sum in the dtype of the bias, see `nn.parameters.spread`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, ...],
        group: str = "matrix",
        per_token: bool = True,
        **options: Any,
    ):
        """Creates kernel and bias.

        Args:
          in_features: width I of the input.
          out_features: width O of the output.
          axes: logical axes of the input and the output, see `nn.parameters.Declaration`.
          group, per_token: of the kernel, see `nn.parameters.Declaration`.
          **options: other arguments of `nnx.Linear`.
        """
        super().__init__(
            in_features,
            out_features,
            kernel_metadata=parameters.kernel(*axes, group=group, per_token=per_token),
            bias_metadata=parameters.vector(axes[-1]),
            **options,
        )

    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        rows, kernel = self.promote_dtype(
            (x.reshape(-1, x.shape[-1]), self.kernel[...]), dtype=self.dtype
        )
        y = jnp.matmul(rows, kernel)
        if self.bias is not None:
            y += parameters.spread(self.bias[...], y)
        return y.reshape(*x.shape[:-1], y.shape[-1])


_BLOCKS = nnx.initializers.lecun_normal(batch_axis=0)


class BlockDiagonal(nnx.Module):
    """Dense layer of each head on its own features: y_h = x_h W_h + b_h, with W (H, K, O).

    Attributes:
      dtype: dtype of the outputs.
    """

    def __init__(
        self,
        heads: int,
        in_features: int,
        out_features: int | None = None,
        *,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = _BLOCKS,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Creates kernel and bias.

        Args:
          heads: number of blocks H.
          in_features: width K of each head's input.
          out_features: width O of each head's output; None is K.
          use_bias: whether there is a bias.
          kernel_init: initializer of the kernel.
          dtype: dtype of the outputs.
          rngs: for the kernel.
        """
        out_features = in_features if out_features is None else out_features
        weights = kernel_init(rngs.params(), (heads, in_features, out_features), jnp.float32)
        self.kernel = nnx.Param(weights, **parameters.kernel("heads", None, None))
        bias = jnp.zeros((heads, out_features))
        metadata = parameters.vector("heads", None)
        self.bias = nnx.Param(bias, **metadata) if use_bias else None
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x_BTHK: Float[Array, "B T H K"]) -> Float[Array, "B T H O"]:
        kernel = self.kernel[...].astype(self.dtype)
        y_BTHO = jnp.einsum("bthk,hko->btho", x_BTHK.astype(self.dtype), kernel)
        return y_BTHO if self.bias is None else y_BTHO + parameters.spread(self.bias[...], y_BTHO)


class Embed(nnx.Embed):
    """`nnx.Embed` whose table has its gradient in its own dtype.

    A frequent token has many terms in that sum, and a sum in bf16 stops growing at 256 of them.
    """

    def __call__(self, inputs: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        return jnp.take(self.embedding[...], inputs, axis=0).astype(self.dtype)


class Head(Linear):
    """Last layer of a model: logits in fp32 or wider."""

    def __init__(self, width: int, outputs: int, **options: Any):
        super().__init__(width, outputs, axes=("embed", "vocabulary"), group="head", **options)

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows E"]:
        logits = super().__call__(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def flops_of_weights(module: nnx.Module) -> int:
    """FLOPs of one token that is multiplied by each weight once; a multiply-add counts as two.

    Weights are the parameters that declare `per_token`: kernels, and taps of convolutions.
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
