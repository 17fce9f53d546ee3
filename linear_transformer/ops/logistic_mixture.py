"""Mixtures of logistic distributions, discretised to the 256 values of a pixel.

Salimans et al. 2017 (PixelCNN++, arXiv:1701.05517, section 2.1), one channel at a time as in
Katharopoulos et al. 2020 (section 4.2).  Pixels are scaled to [-1, 1], so that neighbouring values
are 2/255 apart.  The probability of a value is the mass from half a step below it to half a step
above it; the first interval has no lower end, the last one no upper end.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linear_transformer.types import PRNGKey

LEVELS = 256
MIN_LOG_SCALE = -7.0

Parameters = Float[Array, "*batch P"]  # P = 3 M: logits, means and log scales of M components


def _split(parameters: Parameters) -> tuple[Array, Array, Array]:
    logits, means, log_scales = jnp.split(parameters, 3, axis=-1)
    return logits, means, jnp.maximum(log_scales, MIN_LOG_SCALE)


def negative_log_likelihood(
    parameters: Parameters, pixels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Computes -log p(pixel) in nats.

    The logarithm of a difference of sigmoids is computed in log space, so that a value in the far
    tail has a finite logarithm with an exact gradient.

    Args:
      parameters: (..., 3 M), logits, means and log scales of M components.
      pixels: (...), integers from 0 to 255.
    """
    logits, means, log_scales = _split(parameters)
    half = 1 / (LEVELS - 1)
    centered = (2 * half * pixels - 1)[..., None] - means
    inverse_scale = jnp.exp(-log_scales)
    upper, lower = inverse_scale * (centered + half), inverse_scale * (centered - half)
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) for a < b.
    width = 2 * half * inverse_scale
    log_mass = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(-width))
    first, last = (pixels == 0)[..., None], (pixels == LEVELS - 1)[..., None]
    log_mass = jnp.where(first, jax.nn.log_sigmoid(upper), log_mass)
    log_mass = jnp.where(last, jax.nn.log_sigmoid(-lower), log_mass)
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + log_mass, axis=-1)


def sample(parameters: Parameters, key: PRNGKey) -> Int[Array, "*batch"]:
    """Draws pixels from the distribution of `negative_log_likelihood`.

    The released code of Katharopoulos et al. instead draws with scale elu(s) + 1, although its loss
    has the scale exp(s).
    """
    logits, means, log_scales = _split(parameters)
    component_key, logistic_key = jax.random.split(key)
    component = jax.random.categorical(component_key, logits)[..., None]
    mean, log_scale = (
        jnp.take_along_axis(x, component, axis=-1)[..., 0] for x in (means, log_scales)
    )
    value = mean + jnp.exp(log_scale) * jax.random.logistic(logistic_key, mean.shape, mean.dtype)
    pixel = jnp.round((value + 1) * (LEVELS - 1) / 2)
    return jnp.clip(pixel, 0, LEVELS - 1).astype(jnp.int32)
