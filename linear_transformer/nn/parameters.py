"""Declarations of parameters: logical axes, optimizer group, weight decay and FLOPs.

    self.skip = nnx.Param(jnp.ones((heads,)), **vector("heads"))

A declaration is metadata of the `nnx.Param`, which Flax keeps through split, merge and eval_shape.
The statistics of batch norms (`nnx.BatchStat`) declare their logical axes in the same way.
Optimizers, shardings and FLOP counts use the declaration, and never the name of a parameter.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.logical_axes import RULES

GROUPS = ("matrix", "vector", "embedding", "head")
_KEY = "declaration"  # in the metadata


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Properties of a parameter.

    Attributes:
      axes: logical axis in `nn.logical_axes.RULES`, or None, for each axis of the array.  Axes are
        counted from the last one, because a scanned stack of layers adds an axis in front.
      group: "matrix" for maps between features, which Muon orthogonalises; "vector" for biases,
        gains, decays and other small tables; "embedding" for maps from inputs to features; "head"
        for maps from features to logits.
      weight_decay: whether weight decay applies to the parameter.
      per_token: whether each token is multiplied by each entry once, which FLOP counts include.
    """

    axes: tuple[str | None, ...]
    group: str
    weight_decay: bool
    per_token: bool

    def __post_init__(self):
        if self.group not in GROUPS:
            raise ValueError(f"group is {self.group!r}; choose one of {', '.join(GROUPS)}")
        unknown = [axis for axis in self.axes if axis is not None and axis not in RULES]
        if unknown:
            raise ValueError(f"axes have {unknown[0]!r}; choose of {', '.join(RULES)}, or None")


def kernel(*axes: str | None, group: str = "matrix", per_token: bool = True) -> dict[str, Any]:
    """Metadata of the kernel of a dense layer or a convolution; its last axis is the output."""
    return {_KEY: Declaration(axes, group, weight_decay=True, per_token=per_token)}


def embedding(*axes: str | None) -> dict[str, Any]:
    """Metadata of a table with a row for each token or position."""
    return {_KEY: Declaration(axes, "embedding", weight_decay=True, per_token=False)}


def vector(*axes: str | None) -> dict[str, Any]:
    """Metadata of a bias, a gain, a decay, or another small table."""
    return {_KEY: Declaration(axes, "vector", weight_decay=False, per_token=False)}


def taps(*axes: str | None) -> dict[str, Any]:
    """Metadata of the taps of a depthwise convolution."""
    return {_KEY: Declaration(axes, "vector", weight_decay=False, per_token=True)}


def declaration(parameter: nnx.Variable, name: str) -> Declaration:
    """Returns the declaration of a parameter.

    Args:
      parameter: parameter of a module or of its state.
      name: name of the parameter, for the error message.

    Raises:
      ValueError: the parameter has no declaration.
    """
    if not parameter.has_metadata(_KEY):
        raise ValueError(f"parameter {name} declares nothing; see linear_transformer.nn.parameters")
    return parameter.get_metadata(_KEY)


def declarations(model: nnx.Module, kind: type[nnx.Variable] = nnx.Variable) -> dict[str, Any]:
    """Returns the declarations of a model's parameters, in the structure of `nnx.to_pure_dict`.

    Args:
      model: module with arrays, or with their shapes only.
      kind: `nnx.Param` to leave out the statistics of batch norms, as optimizers need it.

    Raises:
      ValueError: a parameter has no declaration.
    """
    parameters = nnx.state(model, kind)
    for path, parameter in nnx.to_flat_state(parameters):
        declaration(parameter, "/".join(map(str, path)))
    return nnx.to_pure_dict(parameters, lambda parameter: parameter.get_metadata(_KEY))


def spread(parameter: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns a parameter in the shape and dtype of x, to which it is added or multiplied.

    Its gradient is a sum over tokens in the parameter's dtype, or in a wider one of x: a sum in
    bf16 stops growing at 256 times its terms.
    """
    wide = parameter.astype(jnp.promote_types(parameter.dtype, x.dtype))
    return jnp.broadcast_to(wide, x.shape).astype(x.dtype)
