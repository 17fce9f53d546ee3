"""Base class of models."""

import jax
from flax import nnx


class Model(nnx.Module):
    """Model whose parameters can be counted."""

    @property
    def num_parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(nnx.state(self, nnx.Param)))
