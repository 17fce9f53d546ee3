"""Features of cosFormer: ReLU with a cosine weight over the distance.

Qin et al., 2022 (arXiv:2202.08791), equations 9-12: with phi = ReLU,

    phi(q_i)^T phi(k_j) cos(pi (i - j) / 2M)
      = (phi(q_i) sin a_i)^T (phi(k_j) sin a_j) + (phi(q_i) cos a_i)^T (phi(k_j) cos a_j)

where a_i = pi i / 2M.  This is linear attention with twice as many features.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from linear_transformer.ops import checks
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import Positions


def cosine_features(
    x_BTHK: Float[Array, "B T H K"], positions_BT: Positions, max_length: int
) -> Float[Array, "B T H K2"]:
    """Computes the 2 K features [ReLU(x) sin(pi i / 2M), ReLU(x) cos(pi i / 2M)].

    Args:
      x_BTHK, positions_BT: queries or keys, and their positions i.
      max_length: M.  The paper's code uses the length of the input, which changes with every
        decoded token; here M is fixed.  Weights are non-negative as long as all distances are at
        most M; the caller must keep positions below M.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    sizes = checks.arrays(x_BTHK=x_BTHK)
    checks.tokens(sizes, positions_BT=positions_BT)
    checks.counts(max_length=max_length)
    positions = positions_BT[..., None, None].astype(accumulation_dtype(x_BTHK))
    angles = jnp.pi / 2 / max_length * positions
    features = jax.nn.relu(x_BTHK)
    sin, cos = (f(angles).astype(x_BTHK.dtype) for f in (jnp.sin, jnp.cos))
    return jnp.concatenate([features * sin, features * cos], axis=-1)
