"""Random keys that initialise the parameters of a model."""

import jax
from flax import nnx


class ParameterRngs(nnx.Rngs):
    """Replacement of `nnx.Rngs(seed)` with the same keys, for models that are made inside a trace.

    `nnx.Rngs` counts its keys in an array.  If that array is traced, Flax searches the whole trace
    after each key, so that tracing takes time quadratic in the number of parameters.  This class
    counts in a Python integer.
    """

    def __init__(self, seed: int):
        super().__init__(seed)
        self.default = _CountedStream(seed, tag="default")


class _CountedStream(nnx.RngStream):
    def __init__(self, seed: int, *, tag: str):
        super().__init__(seed, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key
