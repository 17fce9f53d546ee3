"""Declarations of parameters: each says what it is where it is made.

    self.skip = nnx.Param(jnp.ones((heads,)), **vector("heads"))

The declaration is metadata of the `nnx.Param`, which Flax keeps through split, merge and
eval_shape.  Optimizers, shardings and counts of FLOPs read it, and no parameter's name.
"""

import dataclasses
from typing import Any

from flax import nnx

from linear_transformer.nn.logical_axes import RULES

GROUPS = ("matrix", "vector", "embedding", "head")
_KEY = "declaration"  # of the metadata


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a parameter is.

    Attributes:
      axes: a name in `nn.logical_axes.RULES` for each axis of the array, or None.  They are counted
        from the last axis: a scanned stack of layers adds an axis in front.
      group: "matrix" for a map between features, which Muon orthogonalises; "vector" for biases,
        gains, decays and other small tables; "embedding" for what makes features of inputs; "head"
        for what makes logits of features.
      weight_decay: whether weight decay shrinks the parameter.
      per_token: whether each token is multiplied with each number once, which counts as FLOPs.
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


def kernel(*axes: str | None, group: str = "matrix") -> dict[str, Any]:
    """Metadata of the kernel of a dense layer or a convolution, whose last axis is the output."""
    return {_KEY: Declaration(axes, group, weight_decay=True, per_token=True)}


def embedding(*axes: str | None) -> dict[str, Any]:
    """Metadata of a table with a row for each token or position."""
    return {_KEY: Declaration(axes, "embedding", weight_decay=True, per_token=False)}


def vector(*axes: str | None) -> dict[str, Any]:
    """Metadata of a bias, a gain, a decay, or another small table."""
    return {_KEY: Declaration(axes, "vector", weight_decay=False, per_token=False)}


def taps(*axes: str | None) -> dict[str, Any]:
    """Metadata of a convolution that keeps features apart."""
    return {_KEY: Declaration(axes, "vector", weight_decay=False, per_token=True)}


def declaration(parameter: nnx.Param, name: str) -> Declaration:
    """The declaration of a parameter.

    Args:
      parameter: as the module or its state has it.
      name: of the parameter, for the error.

    Raises:
      ValueError: it declares nothing.
    """
    if not parameter.has_metadata(_KEY):
        raise ValueError(f"parameter {name} declares nothing; see linear_transformer.nn.parameters")
    return parameter.get_metadata(_KEY)


def declarations(model: nnx.Module) -> dict[str, Any]:
    """The declarations of a model's parameters, in the structure of its `nnx.to_pure_dict`.

    Args:
      model: with arrays or their shapes.

    Raises:
      ValueError: a parameter declares nothing.
    """
    parameters = nnx.state(model, nnx.Param)
    for path, parameter in nnx.to_flat_state(parameters):
        declaration(parameter, "/".join(map(str, path)))
    return nnx.to_pure_dict(parameters, lambda parameter: parameter.get_metadata(_KEY))
