"""Random feature maps: their inner products estimate an exponential or a Gaussian kernel.

With w drawn from N(0, I), for the softmax kernel exp(q^T k)

    E[exp(w^T q - |q|^2 / 2) exp(w^T k - |k|^2 / 2)] = exp(q^T k)            (positive features)
    E[sin(w^T q) sin(w^T k) + cos(w^T q) cos(w^T k)] = exp(-|q - k|^2 / 2)   (Fourier features)

The first is FAVOR+ (Choromanski et al., 2021, arXiv:2009.14794, lemma 1), the second random feature
attention (Peng et al., 2021, arXiv:2103.02143, theorem 1), in which q and k have unit length, so
that the two kernels are proportional.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import checks, log_space
from linear_transformer.ops.log_space import EMPTY, ScaledState
from linear_transformer.ops.non_finite import keep
from linear_transformer.ops.normalizer import append_ones, divide, unit_length
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Keys, Outputs, Queries, SegmentIds, Values

# Least divisor: the output of a query with a smaller sum of weights fades to 0.  Weights are
# relative to 1, the query's largest feature times the largest key feature so far.  The inverse
# square of FLOOR is in the gradient and must not overflow.
FLOOR = 1e-18


@functools.cache
def draw_projections(
    heads: int, features: int, width: int, *, seed: int, orthogonal: bool = True
) -> np.ndarray:
    """Draws rows w of N(0, I), (heads, features, width) in float64, a constant of the model.

    The rows depend on the arguments alone, on every machine: the stream of NumPy's legacy generator
    is frozen, so a checkpoint needs only the seed.  A redraw is another seed; to redraw every N
    steps, take `seed + step // N`.

    Args:
      orthogonal: makes the rows orthogonal within each block of `width`, with the lengths of
        independent Gaussian vectors, which keeps every single row Gaussian and lowers the variance
        (Choromanski et al. 2021, section 2.4).
    """
    generator = np.random.RandomState(seed)
    blocks = -(-features // width)
    w = generator.standard_normal((heads, blocks, width, width))
    if orthogonal:
        q, r = np.linalg.qr(w)
        q *= np.sign(np.einsum("hnii->hni", r))[..., None, :]  # uniform, and unique
        lengths = np.linalg.norm(generator.standard_normal(w.shape), axis=-1, keepdims=True)
        w = lengths * q.swapaxes(-1, -2)
    w = w.reshape(heads, blocks * width, width)[:, :features]
    w.flags.writeable = False
    return w


def positive_log_features(
    x_BTHK: Float[Array, "B T H K"], w_HMK: Float[Array, "H M K"]
) -> Float[Array, "B T H M"]:
    """Computes log phi(x) = w^T x' - |x'|^2 / 2, x' = x / K^(1/4), in the accumulation dtype.

    The mean of phi(q) phi(k) over the M features estimates exp(q^T k / sqrt(K)).
    """
    checks.arrays(x_BTHK=x_BTHK, w_HMK=w_HMK)
    x = x_BTHK.astype(accumulation_dtype(x_BTHK)) * x_BTHK.shape[-1] ** -0.25
    projected = jnp.einsum("bthk,hmk->bthm", x, w_HMK.astype(x.dtype))
    return projected - jnp.sum(jnp.square(x), axis=-1, keepdims=True) / 2


def relu_features(
    x_BTHK: Float[Array, "B T H K"], w_HMK: Float[Array, "H M K"], epsilon: float = 1e-3
) -> Float[Array, "B T H M"]:
    """Computes relu(w^T x / K^(1/4)) + epsilon: generalised attention, not softmax."""
    checks.arrays(x_BTHK=x_BTHK, w_HMK=w_HMK)
    x = x_BTHK.astype(accumulation_dtype(x_BTHK)) * x_BTHK.shape[-1] ** -0.25
    projected = jnp.einsum("bthk,hmk->bthm", x, w_HMK.astype(x.dtype))
    return jnp.maximum(projected, 0) + epsilon


def fourier_features(
    x_BTHK: Float[Array, "B T H K"], w_HMK: Float[Array, "H M K"]
) -> Float[Array, "B T H M2"]:
    """Computes [sin(w^T x), cos(w^T x)] / sqrt(M), x of unit length (Peng et al. 2021, eq. 3).

    The function scales x to unit length; a zero vector has features too, but no gradient.
    """
    checks.arrays(x_BTHK=x_BTHK, w_HMK=w_HMK)
    x = unit_length(x_BTHK)
    angles = jnp.einsum("bthk,hmk->bthm", x, w_HMK.astype(x.dtype))
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return features * w_HMK.shape[1] ** -0.5


def log_feature_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    *,
    direction: str = "causal",
    initial_state: ScaledState | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, ScaledState]:
    """Computes normalised attention with weights sum_f exp(q_if) exp(k_jf), for any magnitude.

    An offset of a query cancels between numerator and denominator; an offset of the keys cancels
    only if all keys of a query share it.  So the keys' offset is the running maximum m_i over
    features and keys so far: it bounds all exponentials by 1, it is causal, and when it grows the
    sums are rescaled by exp(m_{i-1} - m_i), which is a scalar decay per head.

    Args:
      q_BTHK: logarithms of the queries' features.
      k_BSHK: logarithms of the keys' features.
      v_BSHV: values.
      direction: "causal" or "bidirectional" (all keys; S may differ from T: cross attention).
      initial_state: sums (B, H, K, V + 1) and log_scale (B, H) of the earlier tokens.  The scale
        gets no gradient: it is the unit of the sums and of their gradients.
      segment_ids_BT: packed segments; each token sees only its own segment.
      key_mask_BS: False drops a key exactly, even if it is NaN; a query that sees no key gets 0.
      form, chunk_size: options of the causal recurrence, see `ops.decay.decayed_attention`.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the state.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    options: dict[str, Any] = {
        "direction": direction,
        "segment_ids_BT": segment_ids_BT,
        "form": form,
        "chunk_size": chunk_size,
    }
    arrays = (q_BTHK, k_BSHK, v_BSHV)
    sizes = log_space.check(*arrays, initial_state, "BH", key_mask_BS=key_mask_BS, **options)
    dtype = accumulation_dtype(*arrays)
    if initial_state is None:
        shape = tuple(sizes[axis] for axis in "BHK")
        sums = jnp.zeros((*shape, sizes["V"] + 1), dtype)
        initial_state = ScaledState(sums, jnp.zeros(shape[:2], dtype))
    if 0 in (sizes["B"], sizes["T"]):
        return jnp.zeros((*q_BTHK.shape[:3], sizes["V"]), v_BSHV.dtype), initial_state
    q, k = q_BTHK.astype(dtype), k_BSHK.astype(dtype)
    q = jnp.exp(q - lax.stop_gradient(jnp.max(q, axis=-1, keepdims=True)))
    if key_mask_BS is not None:
        k = jnp.where(key_mask_BS[:, :, None, None], k, EMPTY)
        v_BSHV = keep(key_mask_BS, v_BSHV)
    sums, scale = (x.astype(dtype) for x in initial_state)
    scale = jnp.where(jnp.any(sums[..., -1] > 0, axis=-1), scale, EMPTY)
    scale = lax.stop_gradient(scale)
    largest = log_space.largest_seen(jnp.max(k, axis=-1), scale, segment_ids_BT, direction)
    k = jnp.exp(k - largest[..., None])
    if key_mask_BS is not None:
        k = keep(key_mask_BS, k)
    # Operands are as narrow as v; numerator and denominator are not rounded before the division.
    narrow = v_BSHV.dtype
    arrays = (q.astype(narrow), k.astype(narrow), append_ones(v_BSHV).astype(dtype))
    o, sums = log_space.attend(*arrays, sums, scale, largest, **options)
    return divide(o, FLOOR).astype(narrow), ScaledState(sums, largest[:, -1])
