"""Feature maps of kernel attention: sim(q, k) = phi(q)^T phi(k).

A feature map takes one array (..., K) and returns its features (..., M), for any leading axes.  The
dtype of the features is the precision of their products: maps whose products cancel return fp32 for
bf16.  Random features, which need projections too, are in `ops.random_features`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from linear_transformer.ops import checks
from linear_transformer.ops.recurrence import accumulation_dtype

FeatureMap = Callable[[Float[Array, "... K"]], Float[Array, "... M"]]


def elu_plus_one(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Feature map elu(x) + 1 > 0, with a gradient at x < 0 (Katharopoulos et al. 2020, eq. 7)."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def squared_relu(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Feature map max(x, 0)^2 (So et al. 2021, Primer)."""
    return jnp.square(jax.nn.relu(x))


def softmax(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Softmax over the features: the query map of efficient attention (Shen et al. 2021)."""
    return jax.nn.softmax(x, axis=-1)


def signed_softmax(x: Float[Array, "... K"]) -> Float[Array, "... M"]:
    """Softmax over the 2 K features [x, -x] (Zhang et al. 2024, Hedgehog), computed in fp32."""
    both = jnp.concatenate([x, -x], axis=-1)
    return jax.nn.softmax(both.astype(accumulation_dtype(x)), axis=-1).astype(x.dtype)


def dpfp(x: Float[Array, "... K"], nu: int = 1) -> Float[Array, "... M"]:
    """Products of r = relu([x, -x]) with copies of r rolled by 1 to nu places, 2 K nu features.

    Schlag et al. 2021 (arXiv:2102.11174), deterministic parameter-free projection: the products
    are sparse, and vectors with other signs have other features.
    """
    r = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
    return jnp.concatenate([r * jnp.roll(r, i, axis=-1) for i in range(1, nu + 1)], axis=-1)


def identity(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    return x


def taylor(x: Float[Array, "... K"]) -> Float[Array, "... M"]:
    """Taylor polynomial of exp: phi(q)^T phi(k) = 1 + s + s^2 / 2 >= 1/2, s = q^T k / sqrt(K).

    The features are 1, x and the products of pairs, (K + 1) (K + 2) / 2 in all.  Equal products
    x_i x_j and x_j x_i are one feature, so there are fewer than the 1 + K + K^2 of the paper, with
    the same inner products (Arora et al. 2024, arXiv:2402.18668, section 4.1).
    """
    x = _scaled(x)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, 0.5**0.5 * _pairs(x)], axis=-1)


def quadratic(x: Float[Array, "... K"]) -> Float[Array, "... M"]:
    """Products of pairs: phi(q)^T phi(k) = s^2, s = q^T k / sqrt(K); K (K + 1) / 2 features."""
    return _pairs(_scaled(x))


def _scaled(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Returns x / K^(1/4) in fp32 or wider, so that inner products are divided by sqrt(K)."""
    return x.astype(accumulation_dtype(x)) * x.shape[-1] ** -0.25


def _pairs(x: Float[Array, "... K"]) -> Float[Array, "... M"]:
    """Products of pairs, K (K + 1) / 2 features with phi(q)^T phi(k) = (q^T k)^2.

    The sum over features cancels where q is orthogonal to k, so x must be fp32 or wider.
    """
    distant = [2**0.5 * x[..., j:] * x[..., :-j] for j in range(1, x.shape[-1])]
    return jnp.concatenate([jnp.square(x), *distant], axis=-1)


FEATURE_MAPS: dict[str, FeatureMap] = {
    "elu_plus_one": elu_plus_one,
    "elu": jax.nn.elu,  # can be negative: for attention with a norm, not a normaliser
    "relu": jax.nn.relu,
    "squared_relu": squared_relu,
    "identity": identity,
    "softmax": softmax,
    "signed_softmax": signed_softmax,
    "dpfp": dpfp,
    "exp": jnp.exp,
    "taylor": taylor,
    "quadratic": quadratic,
}


@functools.cache
def named(name: str, nu: int | None = None) -> FeatureMap:
    """Returns the map with this name in FEATURE_MAPS, always the same function for the same map.

    Args:
      name: name of the map.
      nu: option of the map "dpfp"; None is its default.

    Raises:
      ValueError: the name is unknown, or the map does not take the option.
    """
    checks.choice("feature_map", name, FEATURE_MAPS)
    checks.counts(nu=nu)
    if nu is None:
        return FEATURE_MAPS[name]
    if name != "dpfp":
        raise ValueError(f"nu is {nu}; only feature_map='dpfp' takes it, not {name!r}")
    return functools.partial(dpfp, nu=nu)


def feature_width(feature_map: FeatureMap | None, width: int) -> int:
    """Number of features that a map makes of `width` features; None is no map."""
    x = jax.ShapeDtypeStruct((width,), jnp.float32)
    return width if feature_map is None else jax.eval_shape(feature_map, x).shape[-1]


def check(feature_map: FeatureMap | None, normalize: bool, **features: Array) -> None:
    """Checks a map; without one, a normaliser needs features >= 0, checked outside of jit only.

    Args:
      feature_map: argument of an operation.
      normalize: whether the operation divides by the sum of the weights.
      features: queries and keys by the names of their arguments.

    Raises:
      ValueError: the map is not a function, or features that need no map are negative.
    """
    if feature_map is not None:
        if not callable(feature_map):
            known = ", ".join(FEATURE_MAPS)
            raise ValueError(
                f"feature_map is {feature_map!r}; it must be None or a function, such as "
                f"one of FEATURE_MAPS: {known}"
            )
    elif normalize:
        for name, x in features.items():
            if checks.is_known(x) and np.any(np.asarray(x, np.float32) < 0):
                raise ValueError(
                    f"{name} has negative entries and feature_map is None: the sum of the weights "
                    "that divides the output can be 0; pass a feature map, or normalize=False"
                )
