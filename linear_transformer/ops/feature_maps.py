"""Feature maps of kernel attention: sim(q, k) = phi(q)^T phi(k).

A feature map takes one array (..., K) and returns its features (..., K').  Maps with random
projections take the projections as a second argument.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FeatureMap = Callable[[Float[Array, "... K"]], Float[Array, "... K"]]


def elu_plus_one(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Feature map elu(x) + 1 > 0, with a gradient at x < 0 (Katharopoulos et al. 2020, eq. 7)."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def squared_relu(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Feature map max(x, 0)^2 (So et al. 2021, Primer)."""
    return jnp.square(jax.nn.relu(x))


def softmax(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Softmax over the features: the query map of efficient attention (Shen et al. 2021)."""
    return jax.nn.softmax(x, axis=-1)


def identity(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    return x


FEATURE_MAPS: dict[str, FeatureMap] = {
    "elu_plus_one": elu_plus_one,
    "elu": jax.nn.elu,  # can be negative: for attention with a norm, not a normaliser
    "relu": jax.nn.relu,
    "squared_relu": squared_relu,
    "identity": identity,
    "softmax": softmax,
    "exp": jnp.exp,
}
